"""What things are and how they flow: types, tree, buffer, loops, inference. Knows no Ray, no Megatron, no tool."""

from engine.buffer import GroupBuffer
from engine.clock import run_virtual
from engine.controller import Controller
from engine.errors import (
    ArpoError,
    BudgetError,
    ConfigError,
    DataError,
    GeneratorError,
    JournalError,
    LearnerError,
    StalledError,
    ToolError,
    boundary,
)
from engine.interfaces import Generator, Tokenizer, ToolHost, Trainer
from engine.reports import StepReport
from engine.rollout import TreeRollout
from engine.rollout_config import RolloutConfig
from engine.train_config import TrainConfig
from engine.tree import TreeBuilder
from engine.types import (
    Batch,
    Completion,
    GenerateRequest,
    Node,
    Prompt,
    Reward,
    Sample,
    SamplingParams,
    ToolCall,
    ToolResult,
    ToolSpec,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
    WeightRef,
)

__all__ = [
    "ArpoError",
    "Batch",
    "BudgetError",
    "Completion",
    "ConfigError",
    "Controller",
    "DataError",
    "GenerateRequest",
    "Generator",
    "GeneratorError",
    "GroupBuffer",
    "JournalError",
    "LearnerError",
    "Node",
    "Prompt",
    "Reward",
    "RolloutConfig",
    "Sample",
    "SamplingParams",
    "StalledError",
    "StepReport",
    "Tokenizer",
    "ToolCall",
    "ToolError",
    "ToolHost",
    "ToolResult",
    "ToolSpec",
    "TrainConfig",
    "Trainer",
    "Trajectory",
    "TrajectoryGroup",
    "TrajectoryTree",
    "TreeBuilder",
    "TreeRollout",
    "WeightRef",
    "boundary",
    "run_virtual",
]
