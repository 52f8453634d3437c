"""Every table. Times are integer milliseconds since the epoch, UTC (`*_ms`).

Bodies of records are JSON text made by msgspec; columns beside a body exist to be queried.
Constraint names are part of the interface: code turns a violated name into a domain error.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Ms = BigInteger
Segment = String(321)  # a column's name of 200 characters, "=", and 120 of its value
AutoId = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers INTEGER keys only

# --- models and contracts -------------------------------------------------------------------------

models = Table(
    "models",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("team", String(200), nullable=False),
    Column("contract_revision", Integer, nullable=False),
    Column("created_ms", Ms, nullable=False),
    Column("retired_ms", Ms),
)

contracts = Table(
    "contracts",
    metadata,
    Column("model", ForeignKey("models.name"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("applied_ms", Ms, nullable=False),
    Column("applied_by", String(200), nullable=False),
)

contract_activations = Table(  # a revision counts from this offset of this partition on
    "contract_activations",
    metadata,
    Column("partition_id", ForeignKey("partitions.id"), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("from_offset", BigInteger, nullable=False),
)

versions = Table(  # one row per model version: seen in traffic, registered by the agent, or both
    "versions",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("created_ms", Ms, nullable=False),
    Column("artifact_uri", Text),
    Column("artifact_sha256", String(64)),
    Column("run_id", String(64)),
    Column("source", String(20), nullable=False),  # traffic | agent | user
)

cuts = Table(
    "cuts",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("cuts_id", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("created_ms", Ms, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("source", Text, nullable=False),
    Index(None, "active", "model", "cuts_id"),  # which are active, without reading the bodies
)

baselines = Table(
    "baselines",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("model", String(200), nullable=False),
    Column("number", Integer, nullable=False),
    Column("cuts_id", String(64), nullable=False),
    Column("state", LargeBinary, nullable=False),  # merged PaneState of its windows
    Column("windows", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("from_ms", Ms),
    Column("to_ms", Ms),
    Column(
        "source", Text, nullable=False
    ),  # traffic | file NAME | promotion:ROLLOUT | grown:ID | accepted
    Column("body", Text, nullable=False),  # JSON: notes
    Column("active", Boolean, nullable=False),
    Column("created_ms", Ms, nullable=False),
    UniqueConstraint("model", "number"),
)

baseline_windows = Table(  # the windows a baseline was fitted on: the detector needs each
    "baseline_windows",
    metadata,
    Column("baseline_id", ForeignKey("baselines.id"), primary_key=True),
    Column("window_start_ms", Ms, primary_key=True),
    Column("state", LargeBinary, nullable=False),
    Column("beside", LargeBinary),  # gauges and segments of the window; null: none were kept
    Column("rows", BigInteger, nullable=False),
)

baseline_performance = (
    Table(  # joined labels of a baseline's windows or file, once none are waited for
        "baseline_performance",
        metadata,
        Column("baseline_id", ForeignKey("baselines.id"), primary_key=True),
        Column("version", String(200), primary_key=True),  # "": of the file
        Column("labelled_rows", BigInteger, nullable=False),
        Column("predicted_rows", BigInteger, nullable=False),
        Column("state", LargeBinary, nullable=False),
    )
)

detectors = Table(  # what is usual, fitted on a baseline; or why that cannot be
    "detectors",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("model", String(200), nullable=False),
    Column("baseline_id", ForeignKey("baselines.id"), nullable=False),
    Column("recipe", String(64), nullable=False),  # digest of all else that the fit depends on
    Column("body", LargeBinary),  # null: refused
    Column("refused", Text),
    Column("created_ms", Ms, nullable=False),
    UniqueConstraint("model", "baseline_id", "recipe"),
)

detector_states = Table(  # after each of the last windows: a late row replays from the one before
    "detector_states",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("detector_id", ForeignKey("detectors.id"), primary_key=True),
    Column("window_start_ms", Ms, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
)

held_rows = Table(  # the first rows from traffic, until they give the cuts
    "held_rows",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("partition_id", ForeignKey("partitions.id"), primary_key=True),
    Column("first_offset", BigInteger, primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# --- ledger and panes -----------------------------------------------------------------------------

partitions = Table(
    "partitions",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("consumer", String(20), nullable=False),  # monitor | archive
    Column("cluster_id", String(100), nullable=False),
    Column("topic", String(249), nullable=False),
    Column("topic_id", String(64), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", String(200)),
    Column("owner_seen_ms", Ms),
    Column("first_offset", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("end_offset", BigInteger),
    Column("caught_up_ms", Ms),  # when its owner last saw the end of the log
    Column("flush_seq", BigInteger, nullable=False),
    Column("messages", BigInteger, nullable=False, server_default="0"),
    Column("gaps", BigInteger, nullable=False, server_default="0"),
    Column("lost", BigInteger, nullable=False, server_default="0"),
    Column("rows", BigInteger, nullable=False, server_default="0"),
    Column("labels", BigInteger, nullable=False, server_default="0"),
    Column("resources", BigInteger, nullable=False, server_default="0"),
    Column("record_ms", Ms),  # Kafka timestamp of the last flushed record
    Column("updated_ms", Ms, nullable=False),
    UniqueConstraint("consumer", "cluster_id", "topic", "topic_id", "partition"),
)

row_classes = Table(  # both ledgers: what became of each row and label
    "row_classes",
    metadata,
    Column("partition_id", ForeignKey("partitions.id"), primary_key=True),
    Column("unit", String(10), primary_key=True),  # row | label | resource
    Column("model", String(200), primary_key=True),  # "" when it could not be read
    Column("class", String(20), primary_key=True),
    Column("reason", String(60), primary_key=True),  # "" when the class says it all
    Column("count", BigInteger, nullable=False),
)

losses = Table(  # offsets that the log had dropped unread, and when their records were made
    "losses",
    metadata,
    Column("partition_id", ForeignKey("partitions.id"), primary_key=True),
    Column("from_offset", BigInteger, primary_key=True),
    Column("to_offset", BigInteger, nullable=False),
    Column("from_ms", Ms),  # Kafka timestamp of the last record before; null: unknown
    Column("to_ms", Ms),  # of the first record after; null: none has come
    Column("found_ms", Ms, nullable=False),
    Column("flush_seq", BigInteger, nullable=False),  # the last flush that changed this row
    Index(None, "partition_id", "flush_seq"),
)

loss_ranges = Table(  # event times of a model that what was lost may have had
    "loss_ranges",
    metadata,
    Column("partition_id", BigInteger, primary_key=True),
    Column("from_offset", BigInteger, primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("from_ms", Ms, nullable=False),  # what was sealed there before
    Column("to_ms", Ms),  # newest event time after the next rows of it; null: none has come
    Column("flush_seq", BigInteger, nullable=False),  # the last flush that changed this row
    ForeignKeyConstraint(
        ["partition_id", "from_offset"], ["losses.partition_id", "losses.from_offset"]
    ),
    Index(None, "partition_id", "flush_seq"),
    Index(None, "model", "partition_id", "flush_seq"),
)

watermarks = Table(
    "watermarks",
    metadata,
    Column("partition_id", ForeignKey("partitions.id"), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("newest_ms", Ms, nullable=False),  # newest event time seen
    Column("last_row_record_ms", Ms, nullable=False),
    Column("last_row_seen_ms", Ms, nullable=False),
    Column("sealed_ms", Ms, nullable=False),  # panes that end at or before are sealed
    Column("flush_seq", BigInteger, nullable=False),  # the last flush that touched the model here
    Index(None, "partition_id", "flush_seq"),  # which models have moved since
)

rejected = Table(
    "rejected",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("partition_id", ForeignKey("partitions.id"), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("record_ms", Ms, nullable=False),
    Column("model", String(200), nullable=False),
    Column("reason", String(60), nullable=False),
    Column("detail", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index(None, "reason", "record_ms"),
)

panes = Table(
    "panes",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("pane_start_ms", Ms, primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("arm", String(40), primary_key=True),  # "" outside a rollout
    Column("traffic_revision", BigInteger, primary_key=True),  # 0 outside a rollout
    Column("segment", Segment, primary_key=True),  # "" = all; else "column=value"
    Column("partition_id", BigInteger, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("cuts_id", String(64), primary_key=True),
    Column("pane_length_ms", Ms, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("sealed", Boolean, nullable=False),
    Column("first_offset", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("flush_seq", BigInteger, nullable=False),
    Index(None, "model", "partition_id", "flush_seq"),  # the evaluator asks what changed since
)

resource_panes = Table(
    "resource_panes",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("pane_start_ms", Ms, primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("instance", String(200), primary_key=True),
    Column("partition_id", BigInteger, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("state", LargeBinary, nullable=False),
    Column("flush_seq", BigInteger, nullable=False),  # the last flush that added to it
    Index(None, "model", "partition_id", "flush_seq"),  # the evaluator asks what changed since
    Index(None, "partition_id", "flush_seq"),  # and which models a flush has touched
)

rollups = Table(  # counts over partitions and generations; written by folds only, under their lease
    "rollups",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("resolution", String(4), primary_key=True),  # pane | hour | day
    Column("start_ms", Ms, primary_key=True),  # of the pane, hour or day
    Column("version", String(200), primary_key=True),
    Column("arm", String(40), primary_key=True),
    Column("traffic_revision", BigInteger, primary_key=True),
    Column("segment", Segment, primary_key=True),
    Column("cuts_id", String(64), primary_key=True),
    Column("rows", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("origin", LargeBinary, nullable=False),  # offsets, flushes, generations; pane starts
    Index(None, "model", "traffic_revision", "resolution"),  # the counts of a rollout's arms
)

resource_rollups = Table(  # gauges over instances and partitions
    "resource_rollups",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("resolution", String(4), primary_key=True),  # hour | day
    Column("start_ms", Ms, primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("state", LargeBinary, nullable=False),
)

folded_segments = Table(  # segments of a partition whose panes were folded: it goes on to know them
    "folded_segments",
    metadata,
    Column("partition_id", ForeignKey("partitions.id"), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("segment", Segment, primary_key=True),
)

row_samples = Table(  # bottom-k by hash of the id, for reports
    "row_samples",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("sample_start_ms", Ms, primary_key=True),
    Column("partition_id", BigInteger, primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# --- labels ---------------------------------------------------------------------------------------

label_runs = Table(  # append-only: predictions and labels in the order of their flushes, until kept
    "label_runs",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("kind", String(10), nullable=False),  # prediction | label
    Column("model", String(200), nullable=False),
    Column("shard", Integer, nullable=False),
    Column("partition_id", ForeignKey("partitions.id"), nullable=False),
    Column("seq", BigInteger, nullable=False),  # flush_seq of its partition
    Column("next_offset", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("min_pane_ms", Ms),
    Column("max_pane_ms", Ms),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("partition_id", "model", "shard", "kind", "seq"),
    Index(None, "model", "shard", "id"),
)

joiners = Table(
    "joiners",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", String(200)),
    Column("expires_ms", Ms, nullable=False),
    Column("position", BigInteger, nullable=False),  # changes with every committed merge
    Column("positions", Text, nullable=False),  # JSON: partition id -> seq merged
    Column("kept_positions", Text, nullable=False),  # JSON: partition id -> seq in kept runs
    Column(
        "let_go", Text, nullable=False
    ),  # JSON: partition id -> newest deleted prediction's pane
    Column("expire_to_ms", Ms, nullable=False),  # retention asks to forget what is older
    Column("expired_to_ms", Ms, nullable=False),  # what is older is forgotten
    Column("updated_ms", Ms, nullable=False),
)

kept_runs = Table(  # the joiner's index as of its checkpoints; of an id the highest number counts
    "kept_runs",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("number", BigInteger, primary_key=True),  # the joiner's position that wrote it
    Column("rows", BigInteger, nullable=False),
    Column("until_ms", Ms, nullable=False),  # an entry of it may live until this expires
    Column("body", LargeBinary, nullable=False),
)

label_classes = Table(  # the label ledger's classes that only the joiner knows
    "label_classes",
    metadata,
    Column("partition_id", ForeignKey("partitions.id"), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("class", String(20), primary_key=True),  # joined | superseded | duplicate | expired
    Column("count", BigInteger, nullable=False),
)

performance = Table(  # an abelian group per pane: signed counts, written by joiners only
    "performance",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("pane_start_ms", Ms, primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("arm", String(40), primary_key=True),
    Column("traffic_revision", BigInteger, primary_key=True),
    Column("segment", Segment, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("labelled_rows", BigInteger, nullable=False),
    Column("predicted_rows", BigInteger, nullable=False),  # rows that a label could join
    Column("state", LargeBinary, nullable=False),
    Column("position", BigInteger, nullable=False),
    Index(None, "model", "shard", "position"),
)

# --- verdicts and alerts --------------------------------------------------------------------------

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("model", String(200), nullable=False),
    Column("window_start_ms", Ms, nullable=False),
    Column("window_end_ms", Ms, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("latest", Boolean, nullable=False),
    Column("outcome", String(20), nullable=False),
    Column("kind", String(20)),
    Column("reason", String(40), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("input_digest", String(64), nullable=False),
    Column("body", Text, nullable=False),  # Verdict as JSON
    Column("created_ms", Ms, nullable=False),
    UniqueConstraint("model", "window_start_ms", "revision"),
    Index(None, "model", "latest", "window_start_ms"),
)

evaluations = Table(  # the evaluator's memory per model: where it is, and what its rules remember
    "evaluations",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("evaluated_to_ms", Ms, nullable=False),
    Column("state", Text, nullable=False),  # JSON: rule memory
    Column("updated_ms", Ms, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(200), nullable=False),
    Column("condition", String(300), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("state", String(20), nullable=False),
    Column("opened_ms", Ms, nullable=False),
    Column("updated_ms", Ms, nullable=False),
    Column("resolved_ms", Ms),
    Column("body", Text, nullable=False),  # Alert as JSON
    Index(None, "model", "state"),
    Index(
        "uq_alerts_open",
        "model",
        "condition",
        unique=True,
        sqlite_where=text("state <> 'resolved'"),
        postgresql_where=text("state <> 'resolved'"),
    ),
)

silences = Table(
    "silences",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(200), nullable=False),
    Column("condition", String(300)),  # None: every condition
    Column("from_ms", Ms, nullable=False),
    Column("to_ms", Ms, nullable=False),
    Column("by", String(200), nullable=False),
    Column("note", Text, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("event_id", String(120), nullable=False),  # deterministic: the same fact, the same id
    Column("topic", String(60), nullable=False),  # outcomes | traffic
    Column("key", String(200), nullable=False),
    Column("type", String(60), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_ms", Ms, nullable=False),
    UniqueConstraint("event_id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("outbox_id", ForeignKey("outbox.id"), primary_key=True),
    Column("receiver", String(200), primary_key=True),  # kafka | webhook:NAME
    Column("sent_ms", Ms),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_ms", Ms, nullable=False),
    Column("last_error", Text),
    Index(None, "sent_ms", "next_attempt_ms"),
)

# --- the agent's records --------------------------------------------------------------------------


def _record_table(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("id", String(64), primary_key=True),
        Column("model", String(200), nullable=False),
        Column("state", String(30), nullable=False),
        Column("active", Boolean, nullable=False),
        Column("seq", Integer, nullable=False),  # number of its transitions: optimistic lock
        Column("created_ms", Ms, nullable=False),
        Column("updated_ms", Ms, nullable=False),
        Column("body", Text, nullable=False),
        Index(
            f"uq_{name}_active",
            "model",
            unique=True,
            sqlite_where=text("active"),
            postgresql_where=text("active"),
        ),
    )


incidents = _record_table("incidents")
runs = _record_table("runs")
rollouts = _record_table("rollouts")

transitions = Table(
    "transitions",
    metadata,
    Column("record", String(10), primary_key=True),
    Column("record_id", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("from_state", String(30), nullable=False),
    Column("to_state", String(30), nullable=False),
    Column("reason", Text, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("at_ms", Ms, nullable=False),
    Column("token", BigInteger, nullable=False),
)

effects = Table(  # intent, then effect, then confirmation: looked up before it is repeated
    "effects",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("record_id", String(64), nullable=False),
    Column("intent_ms", Ms, nullable=False),
    Column("done_ms", Ms),
    Column("result", Text),
)

traffic = Table(  # the current split of each model; the topic and routers are projections of it
    "traffic",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("updated_ms", Ms, nullable=False),
    Column("published_ms", Ms),
)

traffic_history = Table(
    "traffic_history",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    Column("body", Text, nullable=False),
    Column("at_ms", Ms, nullable=False),
)

gated_ranges = Table(  # rows gated once are spent for their model
    "gated_ranges",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("run_id", String(64), primary_key=True),
    Column("from_ms", Ms, nullable=False),
    Column("to_ms", Ms, nullable=False),
)

requests = Table(  # what people ask of the agent; it acts on them at its tick
    "requests",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("record", String(10), nullable=False),
    Column("record_id", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("action", String(20), nullable=False),
    Column("by", String(200), nullable=False),
    Column("at_ms", Ms, nullable=False),
    Column("detail", Text, nullable=False),
    Column("handled_ms", Ms),
    Column("outcome", Text),
    Index(None, "record", "record_id"),
    Index(None, "model", "handled_ms"),
)

# --- archive --------------------------------------------------------------------------------------

archive_files = Table(
    "archive_files",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("path", Text, nullable=False),
    Column("kind", String(12), nullable=False),  # inference | label
    Column("model", String(200), nullable=False),
    Column("partition_id", ForeignKey("partitions.id"), nullable=False),
    Column("first_offset", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("min_time_ms", Ms, nullable=False),
    Column("max_time_ms", Ms, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_ms", Ms, nullable=False),
    UniqueConstraint("path"),
    Index(None, "model", "kind", "min_time_ms"),
)

# --- house ----------------------------------------------------------------------------------------

leases = Table(
    "leases",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_ms", Ms, nullable=False),
)

fixed_settings = Table(  # settings that stored data depends on, as they were first used
    "fixed_settings",
    metadata,
    Column("name", String(60), primary_key=True),
    Column("value", String(200), nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("role", Integer, nullable=False),
    Column("scope", String(200), nullable=False),  # "*", "team:NAME" or "model:NAME"
    Column("created_ms", Ms, nullable=False),
    Column("revoked_ms", Ms),
    UniqueConstraint("secret_sha256"),
)

sessions = Table(  # logins of the dashboard; the cookie's token is kept as a digest only
    "sessions",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("key_id", ForeignKey("api_keys.id"), nullable=False),
    Column("expires_ms", Ms, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", AutoId, primary_key=True, autoincrement=True),
    Column("at_ms", Ms, nullable=False),
    Column("who", String(200), nullable=False),
    Column("action", String(60), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("detail", Text, nullable=False),
)
