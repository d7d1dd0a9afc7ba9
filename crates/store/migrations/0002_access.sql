-- People, their roles and the groups of machines that they may see; actions that end, repeat and come in bulk.

CREATE TABLE machine_group (
    -- Never given again: what is limited to a deleted group must not reach the next one.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    -- Null for the group of the ungrouped. 1 is the highest.
    rank BIGINT UNIQUE,
    policy TEXT
);
INSERT INTO machine_group (id, name, description) VALUES (0, 'Ungrouped machines (default)', '');

CREATE TABLE machine_group_condition (
    machine_group BIGINT NOT NULL REFERENCES machine_group (id),
    property TEXT NOT NULL,
    operator TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (machine_group, property, operator, value)
);

-- Which user groups see the machines of a group; everybody when there is none.
CREATE TABLE machine_group_user_group (
    machine_group BIGINT NOT NULL REFERENCES machine_group (id),
    user_group TEXT NOT NULL,
    PRIMARY KEY (machine_group, user_group)
);

ALTER TABLE machine ADD COLUMN machine_group BIGINT NOT NULL DEFAULT 0;
-- When the restriction ends by itself.
ALTER TABLE machine ADD COLUMN ends_at BIGINT;
CREATE INDEX machine_of_group ON machine (machine_group, id);
CREATE INDEX machine_ends ON machine (ends_at) WHERE ends_at IS NOT NULL;

ALTER TABLE machine_action ADD COLUMN policy TEXT;
ALTER TABLE machine_action ADD COLUMN ends_at BIGINT;
ALTER TABLE machine_action ADD COLUMN idempotency_key TEXT;
-- The bulk call that made it.
ALTER TABLE machine_action ADD COLUMN bulk TEXT;
CREATE UNIQUE INDEX machine_action_idempotency ON machine_action (idempotency_key, requestor, machine)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX machine_action_bulk ON machine_action (requestor, created_at) WHERE bulk IS NOT NULL;

-- Which addresses a machine had, and when.
CREATE TABLE machine_ip (
    machine TEXT NOT NULL REFERENCES machine (id),
    ip TEXT NOT NULL,
    since BIGINT NOT NULL,
    -- Null while the machine has it.
    until BIGINT,
    PRIMARY KEY (machine, ip, since)
);
CREATE INDEX machine_ip_ip ON machine_ip (ip, since);
CREATE INDEX machine_ip_ended ON machine_ip (until) WHERE until IS NOT NULL;

CREATE TABLE role (
    name TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    -- A bit for each right, see domain::permission.
    rights BIGINT NOT NULL,
    bulk_machines_max BIGINT
);
INSERT INTO role (name, description, rights) VALUES ('Administrator', 'Holds every right and sees every machine', 63);

CREATE TABLE role_user_group (
    role TEXT NOT NULL REFERENCES role (name),
    user_group TEXT NOT NULL,
    PRIMARY KEY (role, user_group)
);

CREATE TABLE user_account (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    -- Argon2id in PHC's form.
    password_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    password_changed_at BIGINT NOT NULL,
    disabled_at BIGINT,
    -- Wrong passwords since the last right one.
    failures BIGINT NOT NULL DEFAULT 0,
    locked_until BIGINT
);

CREATE TABLE user_account_group (
    user_account TEXT NOT NULL REFERENCES user_account (id),
    user_group TEXT NOT NULL,
    PRIMARY KEY (user_account, user_group)
);

ALTER TABLE app ADD COLUMN is_public BIGINT NOT NULL DEFAULT 0;
-- One a line.
ALTER TABLE app ADD COLUMN redirect_uris TEXT NOT NULL DEFAULT '';
-- Null: all machines. Otherwise ids, separated by spaces.
ALTER TABLE app ADD COLUMN machine_groups TEXT;
ALTER TABLE app ADD COLUMN bulk_machines_max BIGINT;

-- Public keys with which apps sign client assertions.
CREATE TABLE app_key (
    app TEXT NOT NULL REFERENCES app (id),
    -- SHA-256 of the public key (SubjectPublicKeyInfo, DER), hexadecimal.
    thumbprint TEXT NOT NULL,
    -- SHA-1 and SHA-256 of the certificate, base64url, when the key came with one: the x5t and x5t#S256 of assertions.
    x5t TEXT,
    x5t_s256 TEXT,
    public_key TEXT NOT NULL,
    comment TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When the certificate ends.
    expires_at BIGINT,
    PRIMARY KEY (app, thumbprint)
);

CREATE INDEX audit_entry_at ON audit_entry (at, id);
CREATE INDEX audit_entry_actor ON audit_entry (actor, at, id);
CREATE INDEX audit_entry_operation ON audit_entry (operation, at, id);
CREATE INDEX audit_entry_subject ON audit_entry (subject, at, id);
CREATE INDEX execution_event_sha256 ON execution_event (sha256, id);
CREATE INDEX execution_event_at ON execution_event (at, id);
