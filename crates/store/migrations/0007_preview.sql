-- More of each refused execution, and how many were lost on the machine before they were reported.
ALTER TABLE execution_event ADD COLUMN hook TEXT NOT NULL DEFAULT 'execute';
ALTER TABLE execution_event ADD COLUMN cgroup TEXT;
ALTER TABLE execution_event ADD COLUMN container TEXT;
ALTER TABLE execution_event ADD COLUMN interpreter TEXT;
ALTER TABLE execution_event ADD COLUMN script TEXT;
ALTER TABLE execution_event ADD COLUMN policy TEXT;
ALTER TABLE execution_event ADD COLUMN policy_revision BIGINT;
ALTER TABLE execution_event ADD COLUMN audited BIGINT NOT NULL DEFAULT 0;
ALTER TABLE machine ADD COLUMN events_dropped BIGINT NOT NULL DEFAULT 0;
