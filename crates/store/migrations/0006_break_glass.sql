-- Break-glass: which codes a machine holds, which were shown, and which were used. No code is kept, nor what tells one.

CREATE TABLE break_glass (
    machine TEXT PRIMARY KEY REFERENCES machine (id),
    -- The statement that the machine said to hold: of which store epoch and enrollment, and from which code on.
    store_epoch BIGINT NOT NULL,
    incarnation BIGINT NOT NULL,
    first_serial BIGINT NOT NULL,
    -- The last code that was shown; below first_serial when none of the statement's was.
    shown_serial BIGINT NOT NULL,
    shown_at BIGINT
);

CREATE TABLE break_glass_use (
    machine TEXT NOT NULL REFERENCES machine (id),
    store_epoch BIGINT NOT NULL,
    incarnation BIGINT NOT NULL,
    serial BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    -- By the machine's clock.
    used_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    PRIMARY KEY (machine, store_epoch, incarnation, serial)
);

-- When a code lifted the restriction that was wanted, until the next order.
ALTER TABLE machine ADD COLUMN broken_glass_at BIGINT;

-- The right to see codes.
UPDATE role SET rights = rights | 64 WHERE name = 'Administrator';
