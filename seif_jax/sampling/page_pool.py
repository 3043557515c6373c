"""Which pages of keys and values are in use: decisions made on the host."""

from collections.abc import Sequence

TRASH = 0  # the page to which programs write what nobody reads


class PagePool:
    """The pages of one copy of the weights. A page is free while no prompt, sample or prefix uses
    it."""

    def __init__(self, pages: int):
        """pages: their number, with TRASH."""
        self._free = list(range(pages - 1, TRASH, -1))
        self._users = [0] * pages

    @property
    def free(self) -> int:
        """The number of free pages."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Takes free pages. There must be enough."""
        assert count <= self.free, f"{count} pages of {self.free}"
        pages = [self._free.pop() for _ in range(count)]
        self.share(pages)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Adds a user to pages."""
        for page in pages:
            self._users[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Removes a user from pages."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)
