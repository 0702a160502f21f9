"""`sam2.modeling.sam.prompt_encoder`: the class in our models, for `isinstance`.

Its constructor takes our configuration.
"""

from sam2_fast.model.prompt_encoder import PromptEncoder as PromptEncoder
