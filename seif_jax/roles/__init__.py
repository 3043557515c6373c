"""The four roles as text: what each one is asked, as a chat, and how its reply is read."""

from seif_jax.roles.format import Message as Message
