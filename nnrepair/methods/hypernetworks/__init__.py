"""Gradients that networks transform."""

from nnrepair.methods.hypernetworks.knowledge_editor import KnowledgeEditor
from nnrepair.methods.hypernetworks.malmen import MALMEN
from nnrepair.methods.hypernetworks.mend import MEND

__all__ = ["MALMEN", "MEND", "KnowledgeEditor"]
