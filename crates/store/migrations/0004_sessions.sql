-- Sign-ins of people, devices that wait for one, and what must not be used twice. Of every secret there is a digest.

CREATE TABLE session (
    id TEXT PRIMARY KEY,
    -- Without a reference: the command line is an app without a row.
    app TEXT NOT NULL,
    -- Without a reference: a deleted account leaves its sessions to expire, and none of them can be renewed.
    user_account TEXT NOT NULL,
    user_name TEXT NOT NULL,
    audience TEXT NOT NULL,
    permissions TEXT NOT NULL,
    -- All that the app may have.
    everything BIGINT NOT NULL,
    openid BIGINT NOT NULL,
    offline BIGINT NOT NULL,
    signed_in_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT,
    -- The authorization code that it began with.
    code_digest TEXT UNIQUE,
    code_spent_at BIGINT,
    redirect_uri TEXT,
    challenge TEXT,
    nonce TEXT,
    -- Both parts of the newest refresh token. The first is the same in all of a session.
    refresh_handle_digest TEXT UNIQUE,
    refresh_digest TEXT
);
CREATE INDEX session_expires ON session (expires_at);
CREATE INDEX session_of_user ON session (user_account, signed_in_at);

CREATE TABLE device_code (
    digest TEXT PRIMARY KEY,
    user_code_digest TEXT NOT NULL UNIQUE,
    app TEXT NOT NULL,
    audience TEXT NOT NULL,
    permissions TEXT NOT NULL,
    everything BIGINT NOT NULL,
    openid BIGINT NOT NULL,
    offline BIGINT NOT NULL,
    address TEXT NOT NULL,
    -- Whom it counts for: the address, or the network that one caller has to itself.
    network TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    interval_seconds BIGINT NOT NULL,
    polled_at BIGINT,
    declined_at BIGINT,
    -- The session that was begun when it was approved.
    session TEXT
);
CREATE INDEX device_code_expires ON device_code (expires_at);
CREATE INDEX device_code_waiting ON device_code (network, expires_at)
    WHERE session IS NULL AND declined_at IS NULL;

-- Client assertions that were used, until they expire by themselves.
CREATE TABLE assertion (
    app TEXT NOT NULL,
    jti_digest TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (app, jti_digest)
);
CREATE INDEX assertion_expires ON assertion (expires_at);

-- From which networks an account signed in: from there it may while it is locked.
CREATE TABLE sign_in_network (
    user_account TEXT NOT NULL REFERENCES user_account (id),
    network TEXT NOT NULL,
    signed_in_at BIGINT NOT NULL,
    PRIMARY KEY (user_account, network)
);
