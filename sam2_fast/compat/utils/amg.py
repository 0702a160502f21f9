"""`sam2.utils.amg`."""

from sam2_fast.amg import MaskData as MaskData
from sam2_fast.amg import area_from_rle as area_from_rle
from sam2_fast.amg import batch_iterator as batch_iterator
from sam2_fast.amg import batched_mask_to_box as batched_mask_to_box
from sam2_fast.amg import box_xyxy_to_xywh as box_xyxy_to_xywh
from sam2_fast.amg import build_all_layer_point_grids as build_all_layer_point_grids
from sam2_fast.amg import build_point_grid as build_point_grid
from sam2_fast.amg import calculate_stability_score as calculate_stability_score
from sam2_fast.amg import coco_encode_rle as coco_encode_rle
from sam2_fast.amg import generate_crop_boxes as generate_crop_boxes
from sam2_fast.amg import is_box_near_crop_edge as is_box_near_crop_edge
from sam2_fast.amg import mask_to_rle_pytorch as mask_to_rle_pytorch
from sam2_fast.amg import remove_small_regions as remove_small_regions
from sam2_fast.amg import rle_to_mask as rle_to_mask
from sam2_fast.amg import uncrop_boxes_xyxy as uncrop_boxes_xyxy
from sam2_fast.amg import uncrop_masks as uncrop_masks
from sam2_fast.amg import uncrop_points as uncrop_points
