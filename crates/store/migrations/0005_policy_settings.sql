-- The settings of allow policies, and rules about fs-verity digests.

-- The settings of a revision that are not at their defaults.
CREATE TABLE policy_setting (
    name TEXT NOT NULL,
    revision BIGINT NOT NULL,
    setting TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name, revision, setting),
    FOREIGN KEY (name, revision) REFERENCES policy (name, revision)
);

-- Whether `sha256` is the digest that fs-verity measures, and not that of the content's bytes.
ALTER TABLE policy_rule ADD COLUMN fs_verity BIGINT NOT NULL DEFAULT 0;
