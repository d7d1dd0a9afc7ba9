-- The last impact preview of a machine for each revision of a policy.
CREATE TABLE impact_preview (
    machine TEXT NOT NULL REFERENCES machine (id),
    policy TEXT NOT NULL,
    revision BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    taken_at BIGINT NOT NULL,
    processes BIGINT NOT NULL,
    files BIGINT NOT NULL,
    history_days BIGINT,
    is_cut BIGINT NOT NULL,
    refused_files BIGINT NOT NULL,
    PRIMARY KEY (machine, policy, revision)
);
CREATE TABLE impact_preview_file (
    machine TEXT NOT NULL,
    policy TEXT NOT NULL,
    revision BIGINT NOT NULL,
    -- Counts from 0: the first matters most.
    position BIGINT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT,
    cause TEXT NOT NULL,
    rule TEXT,
    mapped_only BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    executions BIGINT NOT NULL,
    processes BIGINT NOT NULL,
    -- Numbers with spaces between them.
    pids TEXT NOT NULL,
    PRIMARY KEY (machine, policy, revision, position),
    FOREIGN KEY (machine, policy, revision) REFERENCES impact_preview (machine, policy, revision) ON DELETE CASCADE
);
