"""The library: back up and restore domains from a program. The commands are written on it (vbackup-api(7)).

    import vbackup.api

    with vbackup.api.connect("qemu:///system", repository="/srv/backup") as vb:
        made = vb.backup("web")
        vb.restore("web", "/restored")

``connect`` returns a ``Connection``, whose calls take a frozen request and return a frozen answer. What goes wrong is
raised as one of vbackup.errors, all of which are a VbackupError. A call reports to a ``Reporter``, and a ``Stop`` ends
it from another thread. Nothing here prints, exits, handles signals or parses arguments, and a call may be made from any
thread. ``documents`` turns answers into the members of the JSON documents that the commands print.

    connection   Connection, connect      connected    libvirt, repository, names      hosts    connections of threads
    backups      back up domains          restores     write disks                     records  list, show, diff, usage
    upkeep       verify, prune, check ... contents     mount, serve, files of guests   attached bitmaps, transactions
    sessions     serve a moment to a program    streams   backups as streams             copies   backups elsewhere
    documents    answers as JSON                fleet     Fleet, connect_all: several hosts
    daily        jobs of the configuration    configuration   check, show and keep it
    monitoring   is everything backed up?       notices   who is told           schedules   when jobs run

What ``__all__`` names here, and its public members, stays as it is within a major version; what it is imported from
may move.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbackup.api.configuration import (
        check_config,
        config_schema,
        config_text,
        effective_config,
        keep_config,
        kept_config,
        kept_configs,
        propose_config,
        write_config,
    )
    from vbackup.api.connection import Connection, connect, create_repository, is_encrypted
    from vbackup.api.copies import OpenedCopies, open_copies, rewrap_copies
    from vbackup.api.daily import plan_runs, read_config, run_jobs, runs_of, tell_not_run
    from vbackup.api.fleet import Fleet, connect_all, read_hosts
    from vbackup.api.monitoring import (
        metrics_text,
        nagios_line,
        nagios_unknown,
        report_html,
        report_text,
        serve_metrics,
        status,
        status_sentence,
        write_metrics,
        write_report,
    )
    from vbackup.api.notices import notifiers, send_test_notices, tell_overdue
    from vbackup.api.records import BackupRecord, DomainRecord
    from vbackup.api.schedules import install_schedule, remove_schedule, show_schedule
    from vbackup.api.streams import open_stage
    from vbackup.api.upkeep import Repaired
    from vbackup.config.keeping import KeptConfig
    from vbackup.config.model import Config
    from vbackup.config.model import Job as ConfiguredJob
    from vbackup.config.model import Place as ConfigPlace
    from vbackup.config.showing import Shown as ShownKey
    from vbackup.copies.download import PARALLEL_OBJECTS
    from vbackup.copies.place import TargetPlace, default_cache
    from vbackup.domain.attached import AttachedQemu
    from vbackup.domain.fleet import FleetSelection, HostSelection
    from vbackup.domain.freeze import DEFAULT_LIMIT_S as DEFAULT_FREEZE_LIMIT_S
    from vbackup.domain.freeze import MAX_LIMIT_S as MAX_FREEZE_LIMIT_S
    from vbackup.domain.freeze import MIN_LIMIT_S as MIN_FREEZE_LIMIT_S
    from vbackup.domain.selection import Chosen as SelectedDomain
    from vbackup.domain.selection import Selection
    from vbackup.domain.selection import Skipped as SkippedDomain
    from vbackup.engine.plan import BackupPlan
    from vbackup.errors import Status, VbackupError
    from vbackup.hooks.daemons import Daemon as HookDaemon
    from vbackup.hooks.daemons import reload_all as reload_daemons
    from vbackup.hooks.install import Place as HookPlace
    from vbackup.hooks.install import State as HookState
    from vbackup.images.guest import Keys
    from vbackup.images.guest_address import Address
    from vbackup.images.guest_address import parse as parse_address
    from vbackup.images.guest_files import Entry
    from vbackup.images.target_tls import TlsPlace
    from vbackup.images.throwaway import default_directory as default_overlays
    from vbackup.machine import this_host
    from vbackup.model import (
        Backup,
        Compression,
        Consistency,
        DiskImage,
        Group,
        HostIdentity,
        ImageFormat,
        LeftOut,
        Level,
        MachineFile,
        MachineKind,
        Quiesce,
        Transport,
    )
    from vbackup.notices.delivery import Kind as NotifierKind
    from vbackup.notices.listing import NotifierState
    from vbackup.operations.adopt import Adopted
    from vbackup.operations.audit import Audit, AuditRequest, DiskAudit
    from vbackup.operations.backup import BackupRequest
    from vbackup.operations.batch import PARALLEL as PARALLEL_BACKUPS
    from vbackup.operations.batch import Result as BatchResult
    from vbackup.operations.bitmap import Change as BitmapChange
    from vbackup.operations.bitmap import Changed as ChangedBitmap
    from vbackup.operations.bitmap import ChangeRequest as BitmapRequest
    from vbackup.operations.bitmap import Listed as ListedBitmap
    from vbackup.operations.boot_test import MAX_MEMORY_BYTES as BOOT_MEMORY_BYTES
    from vbackup.operations.boot_test import TIMEOUT_S as BOOT_TIMEOUT_S
    from vbackup.operations.boot_test import Booted, BootRequest
    from vbackup.operations.cat import CatRequest
    from vbackup.operations.check import Checked
    from vbackup.operations.completion import ValueKind, ValuesRequest
    from vbackup.operations.completion import values as completion_values
    from vbackup.operations.config_check import CheckedConfig, CheckedDomain, CheckedJob
    from vbackup.operations.consolidation import Consolidated, ConsolidateRequest
    from vbackup.operations.copy import Copied, CopiedPoint, CopyRequest
    from vbackup.operations.copy_prune import CopiesPruned, CopyLine, CopyPruneRequest
    from vbackup.operations.copy_rewrap import Rewrapped
    from vbackup.operations.copy_verify import CopiesVerified, CopyVerifyRequest
    from vbackup.operations.cp import Copies, CpRequest
    from vbackup.operations.diff import Difference, DiffRequest
    from vbackup.operations.diff import Disk as DiffDisk
    from vbackup.operations.failback import FailbackRequest, FailedBack
    from vbackup.operations.failover import FailedOver, FailoverRequest
    from vbackup.operations.failover_test import TriedFailover
    from vbackup.operations.fetch import Fetched, FetchRequest
    from vbackup.operations.forget import Claim, ForgetRequest, Forgotten
    from vbackup.operations.fsck import Checked as CheckedFileSystems
    from vbackup.operations.fsck import FsckRequest
    from vbackup.operations.live_abort import Aborted as LiveAborted
    from vbackup.operations.live_abort import AbortRequest
    from vbackup.operations.live_restore import LiveRequest, LiveRestored
    from vbackup.operations.live_resume import ResumeRequest
    from vbackup.operations.ls import Listing, LsRequest
    from vbackup.operations.metrics import MetricsServer
    from vbackup.operations.mount import Mounted, MountRequest
    from vbackup.operations.note import NoteRequest
    from vbackup.operations.protect import Changed as ChangedProtection
    from vbackup.operations.protect import ProtectRequest
    from vbackup.operations.prune import Line as PruneLine
    from vbackup.operations.prune import PruneRequest, Pruning
    from vbackup.operations.recovery import Recovered, Remedy
    from vbackup.operations.repair import Repair
    from vbackup.operations.replicate import Replicated, ReplicateRequest
    from vbackup.operations.restore import Restored, RestoreRequest
    from vbackup.operations.restore_in_place import InPlaceRequest, RestoredInPlace
    from vbackup.operations.restored_domain import DefinedDomain, DefineRequest
    from vbackup.operations.restored_machine import path_of as machine_path
    from vbackup.operations.restored_machine import tpm_commands
    from vbackup.operations.run import NotRun, Ran, RunRequest
    from vbackup.operations.run_plan import PlannedRun, PlannedStep
    from vbackup.operations.schedule import Schedule, ScheduledFile, ScheduledJob
    from vbackup.operations.schedule_needs import ScheduleRequest
    from vbackup.operations.search import Found as FoundFile
    from vbackup.operations.search import Searched, SearchRequest
    from vbackup.operations.serve import Served, ServeRequest
    from vbackup.operations.serve_session import ServeSessionRequest
    from vbackup.operations.serve_session import Serving as ServedSession
    from vbackup.operations.session_begin import SessionRequest
    from vbackup.operations.session_changes import Changes, ChangesRequest
    from vbackup.operations.session_changes import Kind as ChangesKind
    from vbackup.operations.speed import SpeedChanged, SpeedRequest
    from vbackup.operations.standby_files import NewImage as NewStandbyImage
    from vbackup.operations.standby_status import Condition as StandbyCondition
    from vbackup.operations.standby_status import StandbyStatus
    from vbackup.operations.status import StatusRequest
    from vbackup.operations.stream_backup import StreamRequest
    from vbackup.operations.stream_end import Ended as EndedStream
    from vbackup.operations.stream_restore import Received as ReceivedBackup
    from vbackup.operations.transaction import Done as TransactionDone
    from vbackup.operations.transaction import TransactionRequest
    from vbackup.operations.umount import UmountRequest, Unmounted
    from vbackup.operations.usage import BackupUsage, DomainUsage, Leftover, Usage, UsageRequest
    from vbackup.operations.verify import PARALLEL as PARALLEL_IMAGES
    from vbackup.operations.verify import Verified, VerifyRequest
    from vbackup.overview.state import CopyState, DomainState, Health, JobState, Overview, PointState, RepositoryState
    from vbackup.qapi.actions import BlockDirtyBitmap, CompletionMode
    from vbackup.qemu.jobs import Job
    from vbackup.report import Labelling, Phase, Reporter, Silent
    from vbackup.repository.audit_sample import blocks_found, chance_to_miss
    from vbackup.repository.backup_filter import BackupFilter
    from vbackup.repository.block_list import BLOCK_BYTES
    from vbackup.repository.boot_result import PICTURE as BOOT_PICTURE
    from vbackup.repository.boot_result import BootResult
    from vbackup.repository.change_watch import unusual
    from vbackup.repository.choice import Wanted
    from vbackup.repository.comparison import Extent
    from vbackup.repository.comparison import Kind as ExtentKind
    from vbackup.repository.condition import ChainSize, Condition
    from vbackup.repository.condition import State as BackupState
    from vbackup.repository.findings import Found as Finding
    from vbackup.repository.fsck_result import DAMAGED as FSCK_DAMAGED
    from vbackup.repository.fsck_result import FsckResult
    from vbackup.repository.hosts import count as count_hosts
    from vbackup.repository.hosts import hosts as hosts_of
    from vbackup.repository.hosts import labels as host_labels
    from vbackup.repository.inspection import Severity, Trouble
    from vbackup.repository.lookup import Found as FoundBackup
    from vbackup.repository.merging import Merge, Way
    from vbackup.repository.merging import Plan as MergePlan
    from vbackup.repository.notes import fault as note_fault
    from vbackup.repository.place import Place
    from vbackup.repository.protection import Protection
    from vbackup.repository.repository import MARKER as REPOSITORY_MARKER
    from vbackup.repository.repository import Repository
    from vbackup.repository.retention import Duration, Rules
    from vbackup.repository.room import Room
    from vbackup.repository.room import total as total_room
    from vbackup.repository.stream_record import MAX_JOB_BYTES as MAX_STREAM_JOB_BYTES
    from vbackup.repository.stream_record import TIME as STREAM_TIME
    from vbackup.repository.stream_record import is_job as is_stream_job
    from vbackup.repository.stream_tar import Read as ReadStream
    from vbackup.repository.stream_tar import Write as WriteStream
    from vbackup.repository.verification import Verdict, Verification
    from vbackup.runs.record import DomainResult as RunDomain
    from vbackup.runs.record import Fault as RunFault
    from vbackup.runs.record import Outcome as RunOutcome
    from vbackup.runs.record import Run, StepKind
    from vbackup.runs.record import Step as RunStep
    from vbackup.schedule.places import State as ScheduleState
    from vbackup.schedule.places import Way as ScheduleWay
    from vbackup.schemas import find as find_schema
    from vbackup.schemas import known as known_schemas
    from vbackup.schemas import load as load_schema
    from vbackup.schemas import title as schema_title
    from vbackup.scripts.finding import DIRECTORY as SCRIPT_DIRECTORY
    from vbackup.scripts.finding import Script, ScriptPhase
    from vbackup.scripts.runner import TIMEOUT_S as SCRIPT_TIMEOUT_S
    from vbackup.scripts.runner import DomainScripts
    from vbackup.scripts.runner import Outcome as ScriptOutcome
    from vbackup.scripts.runner import Settings as ScriptSettings
    from vbackup.sessions.checkpoint import Checkpoint, TrackedDisk
    from vbackup.sessions.record import Session, SessionDisk, SessionState
    from vbackup.sessions.sockets import split_address as split_session_address
    from vbackup.sessions.trackers import Tracker
    from vbackup.stop import Stop
    from vbackup.stores.key_files import identities as read_identities
    from vbackup.stores.key_files import recipients as read_recipients
    from vbackup.stores.sealed import Keys as TargetKeys

__all__ = [
    "BLOCK_BYTES",
    "BOOT_MEMORY_BYTES",
    "BOOT_PICTURE",
    "BOOT_TIMEOUT_S",
    "DEFAULT_FREEZE_LIMIT_S",
    "FSCK_DAMAGED",
    "MAX_FREEZE_LIMIT_S",
    "MAX_STREAM_JOB_BYTES",
    "MIN_FREEZE_LIMIT_S",
    "PARALLEL_BACKUPS",
    "PARALLEL_IMAGES",
    "PARALLEL_OBJECTS",
    "REPOSITORY_MARKER",
    "SCRIPT_DIRECTORY",
    "SCRIPT_TIMEOUT_S",
    "STREAM_TIME",
    "AbortRequest",
    "Address",
    "Adopted",
    "AttachedQemu",
    "Audit",
    "AuditRequest",
    "Backup",
    "BackupFilter",
    "BackupPlan",
    "BackupRecord",
    "BackupRequest",
    "BackupState",
    "BackupUsage",
    "BatchResult",
    "BitmapChange",
    "BitmapRequest",
    "BlockDirtyBitmap",
    "BootRequest",
    "BootResult",
    "Booted",
    "CatRequest",
    "ChainSize",
    "ChangedBitmap",
    "ChangedProtection",
    "Changes",
    "ChangesKind",
    "ChangesRequest",
    "Checked",
    "CheckedConfig",
    "CheckedDomain",
    "CheckedFileSystems",
    "CheckedJob",
    "Checkpoint",
    "Claim",
    "CompletionMode",
    "Compression",
    "Condition",
    "Config",
    "ConfigPlace",
    "ConfiguredJob",
    "Connection",
    "Consistency",
    "ConsolidateRequest",
    "Consolidated",
    "Copied",
    "CopiedPoint",
    "Copies",
    "CopiesPruned",
    "CopiesVerified",
    "CopyLine",
    "CopyPruneRequest",
    "CopyRequest",
    "CopyState",
    "CopyVerifyRequest",
    "CpRequest",
    "DefineRequest",
    "DefinedDomain",
    "DiffDisk",
    "DiffRequest",
    "Difference",
    "DiskAudit",
    "DiskImage",
    "DomainRecord",
    "DomainScripts",
    "DomainState",
    "DomainUsage",
    "Duration",
    "EndedStream",
    "Entry",
    "Extent",
    "ExtentKind",
    "FailbackRequest",
    "FailedBack",
    "FailedOver",
    "FailoverRequest",
    "FetchRequest",
    "Fetched",
    "Finding",
    "Fleet",
    "FleetSelection",
    "ForgetRequest",
    "Forgotten",
    "FoundBackup",
    "FoundFile",
    "FsckRequest",
    "FsckResult",
    "Group",
    "Health",
    "HookDaemon",
    "HookPlace",
    "HookState",
    "HostIdentity",
    "HostSelection",
    "ImageFormat",
    "InPlaceRequest",
    "Job",
    "JobState",
    "KeptConfig",
    "Keys",
    "Labelling",
    "LeftOut",
    "Leftover",
    "Level",
    "ListedBitmap",
    "Listing",
    "LiveAborted",
    "LiveRequest",
    "LiveRestored",
    "LsRequest",
    "MachineFile",
    "MachineKind",
    "Merge",
    "MergePlan",
    "MetricsServer",
    "MountRequest",
    "Mounted",
    "NewStandbyImage",
    "NotRun",
    "NoteRequest",
    "NotifierKind",
    "NotifierState",
    "OpenedCopies",
    "Overview",
    "Phase",
    "Place",
    "PlannedRun",
    "PlannedStep",
    "PointState",
    "ProtectRequest",
    "Protection",
    "PruneLine",
    "PruneRequest",
    "Pruning",
    "Quiesce",
    "Ran",
    "ReadStream",
    "ReceivedBackup",
    "Recovered",
    "Remedy",
    "Repair",
    "Repaired",
    "ReplicateRequest",
    "Replicated",
    "Reporter",
    "Repository",
    "RepositoryState",
    "RestoreRequest",
    "Restored",
    "RestoredInPlace",
    "ResumeRequest",
    "Rewrapped",
    "Room",
    "Rules",
    "Run",
    "RunDomain",
    "RunFault",
    "RunOutcome",
    "RunRequest",
    "RunStep",
    "Schedule",
    "ScheduleRequest",
    "ScheduleState",
    "ScheduleWay",
    "ScheduledFile",
    "ScheduledJob",
    "Script",
    "ScriptOutcome",
    "ScriptPhase",
    "ScriptSettings",
    "SearchRequest",
    "Searched",
    "SelectedDomain",
    "Selection",
    "ServeRequest",
    "ServeSessionRequest",
    "Served",
    "ServedSession",
    "Session",
    "SessionDisk",
    "SessionRequest",
    "SessionState",
    "Severity",
    "ShownKey",
    "Silent",
    "SkippedDomain",
    "SpeedChanged",
    "SpeedRequest",
    "StandbyCondition",
    "StandbyStatus",
    "Status",
    "StatusRequest",
    "StepKind",
    "Stop",
    "StreamRequest",
    "TargetKeys",
    "TargetPlace",
    "TlsPlace",
    "TrackedDisk",
    "Tracker",
    "TransactionDone",
    "TransactionRequest",
    "Transport",
    "TriedFailover",
    "Trouble",
    "UmountRequest",
    "Unmounted",
    "Usage",
    "UsageRequest",
    "ValueKind",
    "ValuesRequest",
    "VbackupError",
    "Verdict",
    "Verification",
    "Verified",
    "VerifyRequest",
    "Wanted",
    "Way",
    "WriteStream",
    "blocks_found",
    "chance_to_miss",
    "check_config",
    "completion_values",
    "config_schema",
    "config_text",
    "connect",
    "connect_all",
    "count_hosts",
    "create_repository",
    "default_cache",
    "default_overlays",
    "effective_config",
    "find_schema",
    "host_labels",
    "hosts_of",
    "install_schedule",
    "is_encrypted",
    "is_stream_job",
    "keep_config",
    "kept_config",
    "kept_configs",
    "known_schemas",
    "load_schema",
    "machine_path",
    "metrics_text",
    "nagios_line",
    "nagios_unknown",
    "note_fault",
    "notifiers",
    "open_copies",
    "open_stage",
    "parse_address",
    "plan_runs",
    "propose_config",
    "read_config",
    "read_hosts",
    "read_identities",
    "read_recipients",
    "reload_daemons",
    "remove_schedule",
    "report_html",
    "report_text",
    "rewrap_copies",
    "run_jobs",
    "runs_of",
    "schema_title",
    "send_test_notices",
    "serve_metrics",
    "show_schedule",
    "split_session_address",
    "status",
    "status_sentence",
    "tell_not_run",
    "tell_overdue",
    "this_host",
    "total_room",
    "tpm_commands",
    "unusual",
    "write_config",
    "write_metrics",
    "write_report",
]

#: Where each name is: the module, and there its name, with the one that it has here after a colon if that is another.
_PLACES = {
    # connection
    "vbackup.api.connection": "Connection connect create_repository is_encrypted",
    "vbackup.api.fleet": "Fleet connect_all read_hosts",
    "vbackup.domain.fleet": "FleetSelection HostSelection",
    "vbackup.stop": "Stop",
    "vbackup.report": "Labelling Phase Reporter Silent",
    "vbackup.errors": "Status VbackupError",
    "vbackup.repository.repository": "MARKER:REPOSITORY_MARKER Repository",
    # what is backed up
    "vbackup.model": "Backup Compression Consistency DiskImage Group HostIdentity ImageFormat LeftOut Level "
    "MachineFile MachineKind Quiesce Transport",
    # backups
    "vbackup.operations.backup": "BackupRequest",
    "vbackup.images.target_tls": "TlsPlace",
    "vbackup.engine.plan": "BackupPlan",
    "vbackup.operations.batch": "Result:BatchResult PARALLEL:PARALLEL_BACKUPS",
    "vbackup.domain.selection": "Chosen:SelectedDomain Selection Skipped:SkippedDomain",
    "vbackup.domain.freeze": "DEFAULT_LIMIT_S:DEFAULT_FREEZE_LIMIT_S MAX_LIMIT_S:MAX_FREEZE_LIMIT_S "
    "MIN_LIMIT_S:MIN_FREEZE_LIMIT_S",
    "vbackup.operations.audit": "Audit AuditRequest DiskAudit",
    "vbackup.repository.audit_sample": "blocks_found chance_to_miss",
    "vbackup.repository.block_list": "BLOCK_BYTES",
    "vbackup.operations.speed": "SpeedChanged SpeedRequest",
    "vbackup.operations.recovery": "Recovered Remedy",
    "vbackup.operations.forget": "Claim ForgetRequest Forgotten",
    # restores
    "vbackup.repository.choice": "Wanted",
    "vbackup.operations.restore": "Restored RestoreRequest",
    "vbackup.operations.restored_domain": "DefinedDomain DefineRequest",
    "vbackup.operations.restored_machine": "path_of:machine_path tpm_commands",
    "vbackup.operations.restore_in_place": "InPlaceRequest RestoredInPlace",
    "vbackup.operations.live_restore": "LiveRequest LiveRestored",
    "vbackup.operations.live_resume": "ResumeRequest",
    "vbackup.operations.live_abort": "Aborted:LiveAborted AbortRequest",
    # standbys
    "vbackup.operations.replicate": "Replicated ReplicateRequest",
    "vbackup.operations.standby_files": "NewImage:NewStandbyImage",
    "vbackup.operations.failover": "FailedOver FailoverRequest",
    "vbackup.operations.failover_test": "TriedFailover",
    "vbackup.operations.failback": "FailbackRequest FailedBack",
    "vbackup.operations.standby_status": "Condition:StandbyCondition StandbyStatus",
    # records
    "vbackup.api.records": "BackupRecord DomainRecord",
    "vbackup.repository.backup_filter": "BackupFilter",
    "vbackup.repository.condition": "ChainSize Condition State:BackupState",
    "vbackup.repository.protection": "Protection",
    "vbackup.repository.verification": "Verdict Verification",
    "vbackup.repository.boot_result": "BootResult PICTURE:BOOT_PICTURE",
    "vbackup.repository.fsck_result": "DAMAGED:FSCK_DAMAGED FsckResult",
    "vbackup.repository.hosts": "count:count_hosts hosts:hosts_of labels:host_labels",
    "vbackup.repository.change_watch": "unusual",
    "vbackup.operations.diff": "Difference DiffRequest Disk:DiffDisk",
    "vbackup.repository.comparison": "Extent Kind:ExtentKind",
    "vbackup.operations.usage": "BackupUsage DomainUsage Leftover Usage UsageRequest",
    "vbackup.repository.room": "Room total:total_room",
    # upkeep
    "vbackup.operations.verify": "Verified VerifyRequest PARALLEL:PARALLEL_IMAGES",
    "vbackup.repository.findings": "Found:Finding",
    "vbackup.operations.boot_test": "Booted BootRequest MAX_MEMORY_BYTES:BOOT_MEMORY_BYTES TIMEOUT_S:BOOT_TIMEOUT_S",
    "vbackup.operations.fsck": "Checked:CheckedFileSystems FsckRequest",
    "vbackup.operations.prune": "Line:PruneLine PruneRequest Pruning",
    "vbackup.repository.retention": "Duration Rules",
    "vbackup.repository.merging": "Merge Plan:MergePlan Way",
    "vbackup.operations.consolidation": "Consolidated ConsolidateRequest",
    "vbackup.operations.check": "Checked",
    "vbackup.repository.inspection": "Severity Trouble",
    "vbackup.repository.place": "Place",
    "vbackup.api.upkeep": "Repaired",
    "vbackup.operations.repair": "Repair",
    "vbackup.operations.adopt": "Adopted",
    "vbackup.operations.protect": "Changed:ChangedProtection ProtectRequest",
    "vbackup.operations.note": "NoteRequest",
    "vbackup.repository.notes": "fault:note_fault",
    "vbackup.repository.lookup": "Found:FoundBackup",
    # contents
    "vbackup.operations.mount": "Mounted MountRequest",
    "vbackup.operations.umount": "UmountRequest Unmounted",
    "vbackup.operations.serve": "Served ServeRequest",
    "vbackup.images.throwaway": "default_directory:default_overlays",
    "vbackup.images.guest": "Keys",
    "vbackup.images.guest_address": "Address parse:parse_address",
    "vbackup.images.guest_files": "Entry",
    "vbackup.operations.ls": "Listing LsRequest",
    "vbackup.operations.cp": "Copies CpRequest",
    "vbackup.operations.cat": "CatRequest",
    "vbackup.operations.search": "Found:FoundFile Searched SearchRequest",
    # copies
    "vbackup.api.copies": "OpenedCopies open_copies rewrap_copies",
    "vbackup.copies.place": "TargetPlace default_cache",
    "vbackup.copies.download": "PARALLEL_OBJECTS",
    "vbackup.operations.copy": "Copied CopiedPoint CopyRequest",
    "vbackup.operations.copy_prune": "CopiesPruned CopyLine CopyPruneRequest",
    "vbackup.operations.copy_rewrap": "Rewrapped",
    "vbackup.stores.sealed": "Keys:TargetKeys",
    "vbackup.stores.key_files": "identities:read_identities recipients:read_recipients",
    "vbackup.operations.copy_verify": "CopiesVerified CopyVerifyRequest",
    "vbackup.operations.fetch": "Fetched FetchRequest",
    # attached QEMU
    "vbackup.domain.attached": "AttachedQemu",
    "vbackup.operations.bitmap": "Change:BitmapChange Changed:ChangedBitmap ChangeRequest:BitmapRequest "
    "Listed:ListedBitmap",
    "vbackup.operations.transaction": "Done:TransactionDone TransactionRequest",
    "vbackup.qapi.actions": "BlockDirtyBitmap CompletionMode",
    "vbackup.qemu.jobs": "Job",
    # pull sessions
    "vbackup.operations.session_begin": "SessionRequest",
    "vbackup.sessions.record": "Session SessionDisk SessionState",
    "vbackup.sessions.sockets": "split_address:split_session_address",
    "vbackup.sessions.trackers": "Tracker",
    "vbackup.sessions.checkpoint": "Checkpoint TrackedDisk",
    "vbackup.operations.session_changes": "Changes ChangesRequest Kind:ChangesKind",
    "vbackup.operations.serve_session": "ServeSessionRequest Serving:ServedSession",
    # streams
    "vbackup.api.streams": "open_stage",
    "vbackup.operations.stream_backup": "StreamRequest",
    "vbackup.operations.stream_end": "Ended:EndedStream",
    "vbackup.operations.stream_restore": "Received:ReceivedBackup",
    "vbackup.repository.stream_tar": "Read:ReadStream Write:WriteStream",
    "vbackup.repository.stream_record": "MAX_JOB_BYTES:MAX_STREAM_JOB_BYTES TIME:STREAM_TIME is_job:is_stream_job",
    # is everything backed up?
    "vbackup.api.monitoring": (
        "metrics_text nagios_line nagios_unknown report_html report_text serve_metrics status status_sentence"
        " write_metrics write_report"
    ),
    "vbackup.operations.status": "StatusRequest",
    "vbackup.operations.metrics": "MetricsServer",
    "vbackup.overview.state": "CopyState DomainState Health JobState Overview PointState RepositoryState",
    # the user's scripts
    "vbackup.scripts.finding": "DIRECTORY:SCRIPT_DIRECTORY Script ScriptPhase",
    "vbackup.scripts.runner": "DomainScripts Outcome:ScriptOutcome Settings:ScriptSettings TIMEOUT_S:SCRIPT_TIMEOUT_S",
    # JSON Schema of documents
    "vbackup.schemas": "find:find_schema known:known_schemas load:load_schema title:schema_title",
    # completion of a shell's words
    "vbackup.operations.completion": "ValueKind ValuesRequest values:completion_values",
    # this machine
    "vbackup.machine": "this_host",
    # libvirt's hook script
    "vbackup.hooks.install": "Place:HookPlace State:HookState",
    "vbackup.hooks.daemons": "Daemon:HookDaemon reload_all:reload_daemons",
    # daily operation
    "vbackup.api.daily": "plan_runs read_config run_jobs runs_of tell_not_run",
    "vbackup.api.configuration": "check_config config_schema config_text effective_config keep_config kept_config "
    "kept_configs propose_config write_config",
    "vbackup.api.notices": "notifiers send_test_notices tell_overdue",
    "vbackup.api.schedules": "install_schedule remove_schedule show_schedule",
    "vbackup.notices.delivery": "Kind:NotifierKind",
    "vbackup.notices.listing": "NotifierState",
    "vbackup.operations.schedule": "Schedule ScheduledFile ScheduledJob",
    "vbackup.operations.schedule_needs": "ScheduleRequest",
    "vbackup.schedule.places": "State:ScheduleState Way:ScheduleWay",
    "vbackup.config.model": "Job:ConfiguredJob Config Place:ConfigPlace",
    "vbackup.config.keeping": "KeptConfig",
    "vbackup.config.showing": "Shown:ShownKey",
    "vbackup.operations.config_check": "CheckedConfig CheckedDomain CheckedJob",
    "vbackup.operations.run": "NotRun Ran RunRequest",
    "vbackup.operations.run_plan": "PlannedRun PlannedStep",
    "vbackup.runs.record": "DomainResult:RunDomain Fault:RunFault Outcome:RunOutcome Run Step:RunStep StepKind",
}
_MODULES = {
    public or name: (module, name)
    for module, words in _PLACES.items()
    for name, _, public in (word.partition(":") for word in words.split())
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and no more (PEP 562): a script waits for the imports of each start."""
    try:
        module, there = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module 'vbackup.api' has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(module), there)
    return value


def __dir__() -> list[str]:
    return [*__all__, "documents"]
