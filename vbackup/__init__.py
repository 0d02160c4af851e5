"""vbackup: incremental image backups of libvirt/QEMU virtual machines, running or shut off.

The package is a house: rooms named by what one looks for, and imports that point down only. import-linter checks this
drawing (setup.cfg), CONTRIBUTING.md says where new things go. libvirt has a separate door, the script hooks/qemu.

    cli                      parses and prints: commands (arguments)  handlers (work)  parser  dispatch  arguments
                             values  context  output  streams  terminal  reporters  batch  plans  backup_table  qemu
                             merges  background  keys  guest_files  proofs  live_restore  one_by_one  script_options
                             session_changes  making  pipes  director_config  copies  copies_prune  copies_verify
                             copies_rewrap  fleet  journal  run_table  overviews  grammar  completion_script  collector
    api                      the library, on which the command line is written: connection  connected  hosts  backups
                             restores  records  upkeep  contents  attached  streams  copies  documents  sessions
                             standbys  fleet  daily  configuration  monitoring  notices  schedules
    operations               one module a command: backup  batch  recovery  adopt  verify  restore  forget  bitmap
                             speed  transaction  diff  usage  note  protect  prune  prune_merges  consolidation  audit
                             check  repair  repair_work  repair_merges  repair_files  repair_backups  repair_images
                             restore_in_place  rollback  full_in_place  in_place_end  in_place_host  in_place_there
                             mount  umount  serve  session_begin  session_end  session_offline  session_status
                             session_changes  serve_session  session_recovery  session_daemon  session_watcher  tracker
                             checkpoint  saved_machine  restored_machine  restored_domain  inside  ls  cp  cat  search
                             boot_test  fsck  live_restore  live_pull  live_resume  live_abort  documents
                             restore_documents  restore_scripts  freeze_scripts  stream_backup  stream_end
                             stream_restore  disk_places  disk_places_there  live_files  boot_tpm  copy  copy_verify
                             copy_prune  fetch  restore_there  remote_side  copy_rewrap  replicate  failover
                             failover_test  failback  standby  standby_files  standby_status  standby_documents
                             linked_standby  fleet  run  run_job  run_commands  run_children  run_results  run_log
                             run_end  run_plan  status  config_check  config_init  metrics  completion  report  schedule
                             schedule_needs  live_place  live_there  tpm_there  session_elsewhere  boot_place
                             boot_there
    engine | copies | notices | schedule
    engine | copies | notices
      engine                 the parts of a backup in QEMU: plan  base  underlay  endmark  scratch  allocation
                             allocation_jobs  fleecing  preparation  moment  group  unfinished  finish  leftovers
                             foreign_jobs  total_rate  latency  latency_throttle  proof  disk_plan  survey  audit_copy
                             audit_scratch  rollback  restored_checkpoint  live_backing  session_plan  session_history
                             session_survey  session_scratch  session_lock  session_server  session_close  delivery
                             fleecing_area  rollback_reach
      copies                 points at a target: target  point  points  ledger  planning  claim  staging  composing
                             outgoing  upload  download  parts  view  place  holding  lock_rule
      notices                tell people, once: sending  delivery  occasion  told  memory  text  document  attempts
                             requests  ping  webhook  mail  others  apprise_program  listing
      schedule               units of systemd, lines of cron: units  cron  calendars  quoting  places  systemd
    overview                 is everything backed up?: state  answer  points  pictures  page  page_style  text_page
                             facts  remembered  assess  domains  jobs  reasons  documents  nagios  metrics
    images | stores
      images                 target images: creation  targets  tuning  writeback  block_lists  flatten  raw_data
                             joining  denied  denied_facts  written  storing  merge  opened_point  mount_points
                             mount_place  mount_lock  device  destination  restoring  replacement
                             replacement_there  appliance  guest_address  guest  guest_files  unpacking  throwaway
                             fsck  live_point  scratch  there  target_server  target_tls  live_point_there
      stores                 where copies lie: store  directory  beneath  opening  sealed  age_header  age_stream
                             age_keys  key_files  bech32  settings  ssh  sftp  cloud  cloud_kinds  s3  s3_upload
                             s3_requests  aws  signing
    domain | http | repository | sessions | runs
      domain                 libvirt's side: host  domain_xml  restored_xml  host_state  qemu_arguments  selection
                             definition  nvram  source  access  opening  offline  attached  passthrough  detached
                             freeze  freeze_turn  watchdog  chain_states  own_writes  file_contents  machine_state
                             machine_xml  nvram_xml  state_files  tpm  driver  identity  capabilities  defining  media
                             swtpm  pools  boot_copy  boot_guard  boot_console  boot_watch  screenshot  lifecycle
                             live_xml  qemu_user  linked  host_files  standby_xml  linked_images  fleet  twins
                             hosts_file  image_host  thaw_there  known_names
      http                   the disks of a pull session over HTTPS: server  access  ranges  served
      repository             the record: repository  catalogue  history  hosts  choice  manifest  journal  writer
                             liveness  lock  readers  verify  verification  verdicts  findings  affected  image_check
                             late_lists  read_progress  read_rate  block_list  block_scan  composition  notes
                             protection  backup_filter  comparison  condition  merge_room  room  lookup  removal
                             retention  stays  freed  filesystem  merge_journal  merge_stage  merged_list  merging
                             audit_comparison  audit_sample  audited  change_watch  compressibility  block_sources
                             inspection  image_repair  backup_repair  place  quarantine  chosen  restored
                             changed_blocks  machine_files  in_place_journal  boot_result  fsck_result  kept_result
                             data_size  live_state  stream_tar  stream_members  stream_record  immutability  standbys
                             glance  known_names
      sessions               the record of pull sessions: record  checkpoint  trackers  store  sockets
      runs                   the record of runs of jobs: record  documents  store  lock  due  room_log  attempts
    remote                   hypervisors reached by SSH: address  command  ciphers  connection  link  helper  daemon
                             nameless  host_key
    qemu                     QEMU's side: monitor  reply  qmp_socket  jobs  transaction  block_graph  debug_graph
                             partial_graph  activity  backing_chain  probing  storage_daemon  device_mark  iothreads
                             qemu_img  qcow2  qcow2_layer  qcow2_bitmap  qcow2_clusters  raw_layer  stored_bitmap
                             nbd_address  nbd_client  nbd_blocks  nbd_server  image_lock  nbd_layer  exports
    qapi | hooks | schemas | scripts | config
      qapi                   transactions as data: actions  schema  introspection  rules  checker  safety  wording
      hooks                  libvirt's hook script: install  daemons  marks  half_restored  events
      schemas                JSON Schemas of all documents, as data: (no module)
      scripts                programs of the user's: finding  program  runner
      config                 the configuration: model  calendar  loading  documents  positions  typed  times  keys
                             values  arguments  secrets  programs  writing  showing  schema  keeping  template
    (root)                   words and tools: errors  model  layers  fields  names  report  files  machine  process
                             stop  undo  archive  immutable  trusted  amounts

No I/O is done in qapi, in the words, and where something is decided: engine.plan, disk_plan, base, underlay, endmark,
allocation, moment, latency, session_plan and session_history, repository.history and hosts, copies.planning,
http.ranges, sessions.checkpoint, qemu.block_graph, domain.domain_xml, restored_xml, live_xml, host_state, identity,
capabilities, media, machine_xml, nvram_xml, standby_xml, qemu_arguments, boot_copy and screenshot, images.tuning and
denied, remote.address and command.
"""

__version__ = "0.1.0"
