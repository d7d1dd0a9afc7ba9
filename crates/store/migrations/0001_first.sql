-- Times are ticks of 100 ns since 1970. Booleans are 0 and 1. Ids of machines are 40 hexadecimal digits, others UUIDs.

CREATE TABLE machine (
    id TEXT PRIMARY KEY,
    incarnation BIGINT NOT NULL,
    gate_key TEXT NOT NULL,
    computer_dns_name TEXT NOT NULL,
    os_platform TEXT NOT NULL,
    os_version TEXT NOT NULL,
    os_build TEXT NOT NULL,
    os_architecture TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    -- One "address mac-or-dash up-or-down" a line.
    ip_addresses TEXT NOT NULL,
    last_ip_address TEXT,
    last_external_ip TEXT,
    -- Null until the machine has connected; tier is null when it has none, and missing says why.
    connected_at BIGINT,
    tier TEXT,
    tier_missing TEXT,
    first_seen BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    desired_restricted BIGINT NOT NULL,
    desired_generation BIGINT NOT NULL,
    -- The generation that the machine is to report; below desired_generation once an order was withdrawn.
    wanted_generation BIGINT NOT NULL,
    policy_name TEXT,
    policy_digest TEXT,
    -- Null: unknown.
    reported_restricted BIGINT,
    reported_generation BIGINT NOT NULL,
    reported_since BIGINT
);
CREATE INDEX machine_name ON machine (computer_dns_name, id);
CREATE INDEX machine_last_seen ON machine (last_seen, id);
CREATE INDEX machine_last_ip ON machine (last_ip_address, id);

CREATE TABLE machine_tag (
    machine TEXT NOT NULL REFERENCES machine (id),
    tag TEXT NOT NULL,
    PRIMARY KEY (machine, tag)
);
CREATE INDEX machine_tag_tag ON machine_tag (tag, machine);

CREATE TABLE machine_action (
    id TEXT PRIMARY KEY,
    machine TEXT NOT NULL REFERENCES machine (id),
    computer_dns_name TEXT NOT NULL,
    store_epoch BIGINT NOT NULL,
    incarnation BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    phase BIGINT NOT NULL,
    -- 1 while the phase is not final.
    open BIGINT NOT NULL,
    requestor TEXT NOT NULL,
    comment TEXT NOT NULL,
    source BIGINT NOT NULL,
    external_id TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    deadline BIGINT NOT NULL,
    cancelled_by TEXT,
    cancelled_comment TEXT,
    cancelled_at BIGINT,
    failure TEXT,
    -- Exact signed bytes.
    signed_order TEXT NOT NULL,
    receipt TEXT,
    -- What it was verified with.
    receipt_key TEXT
);
CREATE UNIQUE INDEX machine_action_one_open ON machine_action (machine) WHERE open = 1;
CREATE UNIQUE INDEX machine_action_generation ON machine_action (machine, store_epoch, generation);
-- Lists are newest first, the id decides between equals: each index serves a filter and that order together.
CREATE INDEX machine_action_created ON machine_action (created_at, id);
CREATE INDEX machine_action_updated ON machine_action (updated_at, id);
-- The status of a phase, in the words of crates/store/src/list.rs.
CREATE INDEX machine_action_status ON machine_action (
    (CASE WHEN phase < 2 THEN 0 WHEN phase < 4 THEN 1 WHEN phase < 5 THEN 2 WHEN phase < 8 THEN 3
     WHEN phase < 9 THEN 4 ELSE 5 END),
    created_at, id
);
CREATE INDEX machine_action_requestor ON machine_action (requestor, created_at, id);
CREATE INDEX machine_action_machine ON machine_action (machine, created_at, id);
CREATE INDEX machine_action_external ON machine_action (external_id, created_at, id);
CREATE INDEX machine_action_open ON machine_action (deadline) WHERE open = 1;

CREATE TABLE app (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    secret_digest TEXT NOT NULL,
    -- Names, separated by spaces.
    permissions TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE UNIQUE INDEX app_name ON app (name) WHERE revoked_at IS NULL;

CREATE TABLE enrollment_token (
    id TEXT PRIMARY KEY,
    secret_digest TEXT NOT NULL UNIQUE,
    comment TEXT NOT NULL,
    uses_max BIGINT NOT NULL,
    uses BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE TABLE policy (
    name TEXT NOT NULL,
    revision BIGINT NOT NULL,
    profile BIGINT NOT NULL,
    digest TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (name, revision)
);
CREATE UNIQUE INDEX policy_digest ON policy (digest);

CREATE TABLE policy_rule (
    name TEXT NOT NULL,
    revision BIGINT NOT NULL,
    rule TEXT NOT NULL,
    effect BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    path BLOB,
    comment TEXT NOT NULL,
    PRIMARY KEY (name, revision, rule),
    FOREIGN KEY (name, revision) REFERENCES policy (name, revision)
);

CREATE TABLE execution_event (
    id INTEGER PRIMARY KEY,
    machine TEXT NOT NULL REFERENCES machine (id),
    at BIGINT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT,
    cause TEXT NOT NULL,
    rule TEXT,
    pid BIGINT NOT NULL,
    ppid BIGINT NOT NULL,
    uid BIGINT,
    parent_program TEXT NOT NULL,
    count BIGINT NOT NULL
);
CREATE INDEX execution_event_machine ON execution_event (machine, id);

CREATE TABLE audit_entry (
    id INTEGER PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    operation TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
);

-- A ring of call times for each operation and app: see domain::rate_limit.
CREATE TABLE rate_limit_call (
    operation TEXT NOT NULL,
    app TEXT NOT NULL,
    slot BIGINT NOT NULL,
    call BIGINT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (operation, app, slot)
);

CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
INSERT INTO setting (name, value) VALUES ('store_epoch', '1');
