"""The four roles as text: the chats that ask them, and the parsers of their replies."""

from seif_jax.roles.reply_format import Message as Message
