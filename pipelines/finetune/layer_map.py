"""Which layers of teacher and student are compared. No torch.

Source: "skip" and "last" are Patient Knowledge Distillation's (Sun et al. 2019, arXiv 1908.09355), as Distiller has them; its
earth mover's map is left out.
"""

from __future__ import annotations

from pipelines.finetune.distill_config import LayerMap
from pipelines.stage import UserError


def mapped(layer_map: LayerMap, student: int, teacher: int) -> dict[int, int]:
    """Student's layer -> teacher's layer, both counted from 0.

    Args:
        layer_map: as the file has it.
        student: layers of the student.
        teacher: layers of the teacher.

    Raises:
        UserError: if a layer is not there.

    Example:
        >>> mapped("skip", 4, 30)
        {0: 7, 1: 14, 2: 22, 3: 29}
    """
    if layer_map == "skip":
        return {at: -(-(at + 1) * teacher // student) - 1 for at in range(student)}
    if layer_map == "last":
        if student > teacher:
            raise UserError(
                f"hidden.layer_map: last needs a teacher with as many layers, but it has {teacher} and the student {student}; "
                "write skip, or pairs"
            )
        return {at: teacher - student + at for at in range(student)}
    for who, count, layers in (
        ("student", student, [s for s, _ in layer_map]),
        ("teacher", teacher, [t for _, t in layer_map]),
    ):
        if max(layers) >= count:
            raise UserError(
                f"hidden.layer_map: the {who} has no layer {max(layers)}: it has {count}, counted from 0 to {count - 1}"
            )
    return dict(layer_map)
