-- What makes each filter of the lists cheap: see crates/store/src/list/plan.rs.

-- Everything that machines are filtered by and that has no index of its own, in the order of the list: a filter that
-- nothing passes reads this and not the table. What changes with every heartbeat is not in it.
CREATE INDEX machine_list ON machine (
    id, computer_dns_name, os_platform, os_version, last_ip_address, machine_group, desired_restricted,
    reported_restricted, desired_generation, wanted_generation, reported_generation, reported_since, policy_name, tier,
    ends_at
);

CREATE INDEX machine_action_kind ON machine_action (kind, created_at, id);

-- With the creation, so that the newest of what was changed in a time are found in it alone.
DROP INDEX machine_action_updated;
CREATE INDEX machine_action_updated ON machine_action (updated_at, id, created_at);
-- An action is never changed before it was made, whatever clocks do.
UPDATE machine_action SET updated_at = created_at WHERE updated_at < created_at;
