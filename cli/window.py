"""A window for annotated pictures, made with tkinter, which comes with most Pythons."""

from __future__ import annotations

from typing import Any

SHARE = 0.85  # of the screen's sides that a picture may take


class Window:
    """One window; each picture replaces the one before. After it is closed, the prediction continues."""

    def __init__(self, root: Any) -> None:
        import tkinter

        self.root, self.label, self.closed = root, tkinter.Label(root), False
        self.label.pack()
        self._next = tkinter.BooleanVar(root)
        root.protocol("WM_DELETE_WINDOW", self._close)
        for event in ("<Key>", "<Button-1>"):
            root.bind(event, lambda _: self._next.set(True))

    @classmethod
    def open(cls) -> tuple[Window | None, str]:
        """The window, or None and why there is none."""
        try:
            import tkinter

            from PIL import ImageTk  # noqa: F401
        except ImportError as error:
            return None, f"Python's tkinter is missing: {error}"
        try:
            return cls(tkinter.Tk()), ""
        except tkinter.TclError as error:
            return None, str(error) or "no display"

    def show(self, picture: Any, title: str, stay: bool) -> None:
        """Show a PIL image, scaled down to the screen if needed.

        With ``stay``, wait for a key, a click, or the window's end.
        """
        from PIL import ImageTk

        if self.closed:
            return
        picture = picture.copy()
        screen = self.root.winfo_screenwidth(), self.root.winfo_screenheight()
        picture.thumbnail((int(screen[0] * SHARE), int(screen[1] * SHARE)))
        self._photo = ImageTk.PhotoImage(picture)  # tkinter keeps no reference of its own
        self.label.configure(image=self._photo)
        self.root.title(f"mrt: {title}" + (" (any key: the next one)" if stay else ""))
        self.root.update()
        if stay:
            self._next.set(False)
            self.root.wait_variable(self._next)

    def _close(self) -> None:
        self.closed = True
        self._next.set(True)
        self.root.destroy()
