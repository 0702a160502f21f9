"""`sam2.modeling.sam.prompt_encoder`: the class of our models, for `isinstance`; its constructor
takes our configuration.
"""

from sam2_fast.model.prompt_encoder import PromptEncoder as PromptEncoder
