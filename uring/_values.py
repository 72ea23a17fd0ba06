"""
Immutable values that are cheap to make.

attrs' own frozen classes pay for each field: 390 ns for a Read of eight fields, on a machine where
the kernel reads 4 KiB in 450. Here the fields are slots with private names, which the `__init__`
that attrs writes sets in the plain way (210 ns), and what a user sees are read-only properties over
them (25 ns to read; the package itself reads the slots, 6 ns). Tried and left: frozen, with an
`__init__` that fills `__dict__` (290 ns, and as dear to read); a tuple subclass (260 ns, and every
value is a sequence as well).
"""

import operator
from typing import Any, Final, NoReturn, TypeVar, dataclass_transform

import attrs

_T = TypeVar("_T")
_Fields = list["attrs.Attribute[Any]"]


_DOC: Final = "The argument of this name: see the class."


def _refuse(*_: object) -> NoReturn:
    raise attrs.exceptions.FrozenInstanceError


def _slot(name: str) -> str:
    return name if name.startswith("_") else f"_{name}"


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field,))
def value(cls: type[_T]) -> type[_T]:
    """
    Make an immutable value class of the annotations of `cls`.

    The field `name` is kept in the slot `_name`, and is an argument `name` of `__init__`. A field
    whose own name begins with an underscore has no property.
    """
    public: dict[str, str] = {}

    def _to_slots(_cls: type, found: _Fields) -> _Fields:
        # Those of the bases have their public names, too, and how annotations are kept is not ours.
        public.update({_slot(field.name): field.name for field in found})
        return [field.evolve(name=_slot(field.name)) for field in found]

    made: Any = attrs.define(
        slots=True,
        eq=True,
        unsafe_hash=True,
        repr=False,
        on_setattr=attrs.setters.NO_OP,
        field_transformer=_to_slots,
    )(cls)
    fields = [field.evolve(name=public[field.name]) for field in made.__attrs_attrs__]
    made.__attrs_attrs__ = tuple(fields)  # what attrs.evolve() and attrs.fields() go by
    by_position = tuple(
        field.name for field in fields if field.init and not field.kw_only and field.name[0] != "_"
    )
    setattr(made, "__match_args__", by_position)  # noqa: B010 - mypy takes it for its own class's
    for field in fields:
        if field.converter is not None:  # attrs shows what the converter takes, which may be all
            made.__init__.__annotations__[field.name] = field.type
        if not field.name.startswith("_"):
            getter = operator.attrgetter(_slot(field.name))
            setattr(made, field.name, property(getter, _refuse, _refuse, _DOC))
    result: type[_T] = made
    return result
