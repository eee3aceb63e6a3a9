"""Which network is which chain, as data: class of network → layer groups, input to output → steps.

A step is one of

- `layer1.0`: the module at that path, called;
- `features.3:7`: the children 3 to 6 of the module at that path, one after the other;
- `@relu`: a named function of `warmstart.models.chain.FUNCTIONS`, given the network and the value;
- `=grid`, `=grid_nhwc`, `=tokens`: the value here is what `Features` reports before pooling;
- `+cls_token`: nothing is called; the parameter or module belongs to this group because a function of it uses it.
  Absent ones are ignored, for networks that come with and without.

A group called `stage*` becomes several: one per child of the module that it names, or, after a `|`, cut after every
child whose name or class matches the pattern. Steps under `+` join the group before them. What no step names and has
no parameters (pools, dropout) belongs to the last group.
"""

from __future__ import annotations

from typing import TypeAlias

Chain: TypeAlias = "dict[str, str]"

TIMM: dict[str, Chain] = {
    "ResNet": {
        "stem": "conv1 bn1 act1 maxpool",
        "layer1": "layer1",
        "layer2": "layer2",
        "layer3": "layer3",
        "layer4": "layer4 =grid @pre_logits",
    },
    "ResNetV2": {"stem": "stem", "stage*": "stages", "+": "norm =grid @pre_logits"},
    "VGG": {"stage*": "features|MaxPool2d", "head": "=grid @pre_logits +pre_logits"},
    "InceptionV3": {
        "stem": "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Pool1 Conv2d_3b_1x1 Conv2d_4a_3x3 Pool2",
        "mixed5": "Mixed_5b Mixed_5c Mixed_5d",
        "mixed6": "Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e",
        "mixed7": "Mixed_7a Mixed_7b Mixed_7c =grid @pre_logits",
    },
    "InceptionV4": {
        "stem": "features.0:6",
        "inception_a": "features.6:10",
        "inception_b": "features.10:18",
        "inception_c": "features.18:22 =grid @pre_logits",
    },
    "DenseNet": {"block*": r"features|pool0|transition\d+", "+": "=grid @pre_logits"},
    "EfficientNet": {"stem": "conv_stem bn1", "block*": "blocks", "head": "conv_head bn2 =grid @pre_logits"},
    "MobileNetV3": {
        "stem": "conv_stem bn1",
        "block*": "blocks",
        "head": "=grid @pre_logits +conv_head +norm_head +act2",
    },
    "ConvNeXt": {"stem": "stem", "stage*": "stages", "+": "norm_pre =grid @pre_logits +head"},
    "RegNet": {"stem": "stem", "s1": "s1", "s2": "s2", "s3": "s3", "s4": "s4 final_conv =grid @pre_logits"},
    "VisionTransformer": {
        "stem": "patch_embed @pos_embed +pos_embed +cls_token +reg_token +pos_drop patch_drop norm_pre",
        "block*": "blocks",
        "+": "norm =tokens @pre_logits +attn_pool +fc_norm",
    },
    "VisionTransformerDistilled": {
        "stem": "patch_embed @pos_embed +pos_embed +cls_token +dist_token +pos_drop patch_drop norm_pre",
        "block*": "blocks",
        "+": "norm =tokens @pre_logits +fc_norm",
    },
    "SwinTransformer": {"stem": "patch_embed", "stage*": "layers", "+": "norm =grid_nhwc @pre_logits +head"},
    "SwinTransformerV2": {"stem": "patch_embed", "stage*": "layers", "+": "norm =grid_nhwc @pre_logits +head"},
}

TORCHVISION: dict[str, Chain] = {
    "ResNet": {
        "stem": "conv1 bn1 relu maxpool",
        "layer1": "layer1",
        "layer2": "layer2",
        "layer3": "layer3",
        "layer4": "layer4 =grid avgpool @flatten",
    },
    "AlexNet": {"stage*": "features|MaxPool2d", "head": "=grid avgpool @flatten classifier"},
    "VGG": {"stage*": "features|MaxPool2d", "head": "=grid avgpool @flatten classifier"},
    "SqueezeNet": {"stage*": "features|MaxPool2d", "+": "=grid @average_pool"},
    "GoogLeNet": {
        "stem": "conv1 maxpool1 conv2 conv3 maxpool2",
        "inception3": "inception3a inception3b maxpool3",
        "inception4": "inception4a inception4b inception4c inception4d inception4e maxpool4",
        "inception5": "inception5a inception5b =grid avgpool @flatten dropout",
    },
    "Inception3": {
        "stem": "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2",
        "mixed5": "Mixed_5b Mixed_5c Mixed_5d",
        "mixed6": "Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e",
        "mixed7": "Mixed_7a Mixed_7b Mixed_7c =grid avgpool dropout @flatten",
    },
    "DenseNet": {"block*": r"features|pool0|transition\d+", "+": "@relu =grid @average_pool"},
    "MobileNetV2": {
        "stem": "features.0:2",
        "stage1": "features.2:4",
        "stage2": "features.4:7",
        "stage3": "features.7:11",
        "stage4": "features.11:14",
        "stage5": "features.14:17",
        "stage6": "features.17",
        "head": "features.18 =grid @average_pool classifier",
    },
    "MobileNetV3": {"block*": "features", "head": "=grid avgpool @flatten classifier"},
    "MNASNet": {
        "stem": "layers.0:8",
        "stage*": "layers.8:14",
        "head": "layers.14:17 =grid @mean classifier",
    },
    "EfficientNet": {"stage*": "features", "+": "=grid avgpool @flatten classifier"},
    "ShuffleNetV2": {
        "stem": "conv1 maxpool",
        "stage2": "stage2",
        "stage3": "stage3",
        "stage4": "stage4",
        "head": "conv5 =grid @mean",
    },
    "ConvNeXt": {
        "stage1": "features.0:2",
        "stage2": "features.2:4",
        "stage3": "features.4:6",
        "stage4": "features.6:8 =grid avgpool classifier",
    },
    "RegNet": {"stem": "stem", "block*": "trunk_output", "+": "=grid avgpool @flatten"},
    "SwinTransformer": {
        "stage1": "features.0:2",
        "stage2": "features.2:4",
        "stage3": "features.4:6",
        "stage4": "features.6:8 norm permute =grid avgpool flatten",
    },
    "VisionTransformer": {
        "stem": "@patch_tokens +conv_proj +class_token +encoder.pos_embedding encoder.dropout",
        "block*": "encoder.layers",
        "+": "encoder.ln =tokens @first_token heads",
    },
    "MaxVit": {"stem": "stem", "block*": "blocks", "head": "=grid classifier"},
}

TABLES = {"timm": TIMM, "torchvision": TORCHVISION}
