"""Tasks, their delivery and the registry of models in SQLite or MySQL: the truth about every task."""

from streamapp.db.arrivals import Arrivals
from streamapp.db.claims import Claims
from streamapp.db.database import Database, open_database
from streamapp.db.delivery import Delivery
from streamapp.db.inputs import InputRow, Inputs
from streamapp.db.letters import DeadLetters, Letter
from streamapp.db.registry import Registry
from streamapp.db.retention import Past, Retention
from streamapp.db.rows import (
    Callback,
    CallbackState,
    Cancel,
    DueTask,
    End,
    Event,
    Glimpse,
    Held,
    ImageRow,
    LoraRow,
    Lost,
    ModelRow,
    NewTask,
    Produced,
    TaskRow,
)
from streamapp.db.states import ENDED, LIVE, State, may
from streamapp.db.tasks import Tasks
from streamapp.db.upgrade import revision, upgrade

__all__ = [
    "ENDED",
    "LIVE",
    "Arrivals",
    "Callback",
    "CallbackState",
    "Cancel",
    "Claims",
    "Database",
    "DeadLetters",
    "Delivery",
    "DueTask",
    "End",
    "Event",
    "Glimpse",
    "Held",
    "ImageRow",
    "InputRow",
    "Inputs",
    "Letter",
    "LoraRow",
    "Lost",
    "ModelRow",
    "NewTask",
    "Past",
    "Produced",
    "Registry",
    "Retention",
    "State",
    "TaskRow",
    "Tasks",
    "may",
    "open_database",
    "revision",
    "upgrade",
]
