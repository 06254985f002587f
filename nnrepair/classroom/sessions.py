"""Who is in the classroom: one lesson for each browser tab, and no more than the machine can hold."""

from __future__ import annotations

from nnrepair.classroom.lesson import Lesson
from nnrepair.classroom.material import Material
from nnrepair.errors import InvalidInput

#: Lessons at the same time. One holds at most MOST_REPAIRS networks of some ten thousand numbers each.
MOST_LESSONS = 60


class Room:
    """The lessons that are open; none knows of another.

    >>> from nnrepair.classroom.material import material
    >>> room = Room(material("digits"), most=1)
    >>> lesson = room.enter()
    >>> room.enter()
    Traceback (most recent call last):
    nnrepair.errors.InvalidInput: The classroom is full: 1 lessons are open. Close one ...
    >>> room.leave(lesson)
    >>> len(room)
    0
    """

    def __init__(self, material: Material, most: int = MOST_LESSONS) -> None:
        self.material = material
        self.most = most
        self._lessons: list[Lesson] = []

    def __len__(self) -> int:
        return len(self._lessons)

    def enter(self) -> Lesson:
        """Return a new lesson.

        Raises:
            InvalidInput: there are as many as fit.
        """
        if len(self) >= self.most:
            raise InvalidInput(
                f"The classroom is full: {self.most} lessons are open. Close one in another tab, or wait a minute, and "
                "reload this page."
            )
        lesson = Lesson(self.material)
        self._lessons.append(lesson)
        return lesson

    def leave(self, lesson: Lesson) -> None:
        """Forget a lesson and all its networks."""
        self._lessons = [each for each in self._lessons if each is not lesson]
