"""What all values have in common beside their fields: how they show themselves.

attrs would write and compile a ``__repr__`` for each class at every start of a program, which is a third of the time
that a class takes to be made, and of most classes it is never called. So there is one for all: a class that attrs makes
frozen is a :class:`Value`, and asks attrs for no ``__repr__``.
"""

import attrs


class Value:
    """What is its fields and nothing else.

    ``repr`` tells them as that of attrs does: not at all where a field is declared with ``repr=False``, and in other
    words where it is given some, as what is secret is.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        fields: tuple[attrs.Attribute[object], ...] = getattr(type(self), "__attrs_attrs__", ())
        shown = [f"{field.name}={_shown(field, getattr(self, field.name))}" for field in fields if field.repr]
        return f"{type(self).__qualname__.rpartition('>.')[2]}({', '.join(shown)})"


def masked(_: object) -> str:
    """Return what a secret is shown as."""
    return "***"


def _shown(field: "attrs.Attribute[object]", value: object) -> str:
    return field.repr(value) if callable(field.repr) else repr(value)
