//! Lists: what queries may name of machines and machine actions, and how a query becomes SQL.
//!
//! Owns the properties and where their values are, the order of a list and its pages. What a caller wrote reaches SQL
//! as bound values only. Deliberately parses nothing: that is done by `odata`, against the schemas given here.

mod condition;
mod order;
mod plan;
mod reach;

use domain::machine::{INACTIVE_AFTER, Machine};
use domain::machine_action::MachineAction;
use domain::machine_group::MachineAccess;
use domain::time::Timestamp;
use odata::{Direction, Property, Query, Schema, TOP_MAX, Type};
use rusqlite::{Row, params_from_iter};

use crate::row::count;
use crate::{StoreError, Tx, machine, machine_action};
use order::Order;
use plan::{LIMITS, Limits, Plan, Statement};

/// The properties of machines.
pub static MACHINES: Schema = Schema {
    fields: &[
        "id",
        "computerDnsName",
        "firstSeen",
        "lastSeen",
        "osPlatform",
        "osProcessor",
        "osArchitecture",
        "version",
        "osBuild",
        "healthStatus",
        "onboardingStatus",
        "rbacGroupId",
        "rbacGroupName",
        "riskScore",
        "exposureLevel",
        "deviceValue",
        "aadDeviceId",
        "machineTags",
        "lastIpAddress",
        "lastExternalIpAddress",
        "ipAddresses",
        "agentVersion",
        "executionRestriction",
    ],
    properties: &properties(MACHINE_COLUMNS),
};

/// The properties of machine actions.
pub static MACHINE_ACTIONS: Schema = Schema {
    fields: &[
        "id",
        "type",
        "title",
        "requestor",
        "requestorComment",
        "status",
        "machineId",
        "computerDnsName",
        "creationDateTimeUtc",
        "lastUpdateDateTimeUtc",
        "cancellationRequestor",
        "cancellationComment",
        "cancellationDateTimeUtc",
        "errorHResult",
        "scope",
        "externalId",
        "requestSource",
        "relatedFileInfo",
        "commands",
        "troubleshootInfo",
    ],
    properties: &properties(MACHINE_ACTION_COLUMNS),
};

/// Every value that the vendor documents, so that a query for one that does not occur here finds nothing.
const HEALTH_NAMES: Type = Type::Enum(&[
    "Active",
    "Inactive",
    "ImpairedCommunication",
    "NoSensorData",
    "NoSensorDataImpairedCommunication",
    "Unknown",
]);
const ONBOARDING: Type = Type::Enum(&["onboarded", "CanBeOnboarded", "Unsupported", "InsufficientInfo"]);
const RISK: Type = Type::Enum(&["None", "Informational", "Low", "Medium", "High"]);
const EXPOSURE: Type = Type::Enum(&["None", "Low", "Medium", "High"]);
const DEVICE_VALUE: Type = Type::Enum(&["Normal", "Low", "High"]);
const DESIRED: Type = Type::Enum(&["Released", "Restricted"]);
const REPORTED: Type = Type::Enum(&["Released", "Restricted", "Unknown"]);
const STATUS: Type = Type::Enum(&["Pending", "InProgress", "Succeeded", "Failed", "TimeOut", "Cancelled"]);
const KIND: Type = Type::Enum(&[
    "RestrictCodeExecution",
    "UnrestrictCodeExecution",
    "RunAntiVirusScan",
    "Offboard",
    "LiveResponse",
    "CollectInvestigationPackage",
    "Isolate",
    "Unisolate",
    "StopAndQuarantineFile",
]);

/// In the SQL of a column: the time [`INACTIVE_AFTER`] ago. Who was last heard before it is inactive.
const INACTIVE_SINCE: &str = "{inactive_since}";

/// A constant; a bare number would mean a column of the result where rows are ordered.
const ZERO: &str = "CAST(0 AS BIGINT)";

/// The property whose column health is decided by.
const LAST_SEEN: &str = "lastSeen";
/// The property of the group that a machine is in.
const GROUP: &str = "rbacGroupId";
/// The property with which the order of actions begins.
const CREATED: &str = "creationDateTimeUtc";
/// The property of an action's last change, which is never before its creation.
const UPDATED: &str = "lastUpdateDateTimeUtc";

const HEALTH: Column =
    column("healthStatus", HEALTH_NAMES, "CASE WHEN last_seen > {inactive_since} THEN 0 ELSE 1 END");

const MACHINE_COLUMNS: &[Column; 24] = &[
    column("id", Type::String, "id").lower_case(),
    column("computerDnsName", Type::String, "computer_dns_name"),
    column("version", Type::String, "os_version"),
    column("osPlatform", Type::String, "os_platform"),
    column(LAST_SEEN, Type::DateTime, "last_seen"),
    column("lastIpAddress", Type::String, "last_ip_address").nullable(),
    column("machineTags", Type::Strings, "machine_tag"),
    HEALTH,
    column(GROUP, Type::Integer, "machine_group"),
    column(
        "rbacGroupName",
        Type::String,
        "(SELECT name FROM machine_group WHERE machine_group.id = machine.machine_group)",
    )
    .looked_up("machine_group IN (SELECT id FROM machine_group WHERE ", "name"),
    // A machine is known because it enrolled. There is no directory, and no assessment.
    column("onboardingStatus", ONBOARDING, ZERO).constant(Some(0)),
    column("aadDeviceId", Type::Guid, "NULL").nullable().constant(None),
    column("riskScore", RISK, ZERO).constant(Some(0)),
    column("exposureLevel", EXPOSURE, ZERO).constant(Some(0)),
    column("deviceValue", DEVICE_VALUE, ZERO).constant(Some(0)),
    // The field is an object; by itself its name stands for what the machine reports.
    column("executionRestriction", REPORTED, "coalesce(reported_restricted, 2)"),
    column("executionRestriction/desired", DESIRED, "desired_restricted"),
    column("executionRestriction/reported", REPORTED, "coalesce(reported_restricted, 2)"),
    column("executionRestriction/generation", Type::Integer, "desired_generation"),
    column("executionRestriction/since", Type::DateTime, "reported_since").nullable(),
    column("executionRestriction/policy", Type::String, "policy_name").nullable(),
    column("executionRestriction/backend", Type::String, "tier").nullable(),
    // `domain::restriction::Restriction::drifts`.
    column(
        "executionRestriction/drift",
        Type::Boolean,
        "CASE WHEN desired_restricted = coalesce(reported_restricted, 0) \
         AND reported_generation = wanted_generation THEN 0 ELSE 1 END",
    ),
    column("executionRestriction/endsAt", Type::DateTime, "ends_at").nullable(),
];

const MACHINE_ACTION_COLUMNS: &[Column; 8] = &[
    column("id", Type::Guid, "id"),
    // `domain::machine_action::Phase::status`, in the stored numbers. An index holds the same expression.
    column(
        "status",
        STATUS,
        "CASE WHEN phase < 2 THEN 0 WHEN phase < 4 THEN 1 WHEN phase < 5 THEN 2 WHEN phase < 8 THEN 3 \
         WHEN phase < 9 THEN 4 ELSE 5 END",
    ),
    column("machineId", Type::String, "machine").lower_case(),
    column("type", KIND, "kind"),
    column("requestor", Type::String, "requestor"),
    column(CREATED, Type::DateTime, "created_at"),
    column(UPDATED, Type::DateTime, "updated_at"),
    column("externalId", Type::String, "external_id").nullable(),
];

/// A property, and where its values are.
#[derive(Clone, Copy)]
struct Column {
    property: Property,
    /// Text; a whole number; a time's ticks; 0 or 1; the position of a name in its type; or of a collection the table.
    sql: &'static str,
    may_be_null: bool,
    /// The text is hexadecimal digits, stored in lower case and asked for in either.
    lower_case: bool,
    /// Every row has this value.
    constant: Option<Option<i64>>,
    /// A condition on a row that is not closed, and what in it has the property's value: for tests that are
    /// cheaper in another table, once, than in each row.
    looked_up: Option<(&'static str, &'static str)>,
}

const fn column(name: &'static str, kind: Type, sql: &'static str) -> Column {
    Column {
        property: Property { name, kind },
        sql,
        may_be_null: false,
        lower_case: false,
        constant: None,
        looked_up: None,
    }
}

impl Column {
    const fn nullable(self) -> Self {
        Self { may_be_null: true, ..self }
    }

    const fn lower_case(self) -> Self {
        Self { lower_case: true, ..self }
    }

    const fn constant(self, value: Option<i64>) -> Self {
        Self { constant: Some(value), ..self }
    }

    const fn looked_up(self, condition: &'static str, value: &'static str) -> Self {
        Self { looked_up: Some((condition, value)), ..self }
    }
}

#[expect(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn properties<const N: usize>(columns: &[Column; N]) -> [Property; N] {
    let mut properties = [columns[0].property; N];
    let mut index = 0;
    while index < N {
        properties[index] = columns[index].property;
        index += 1;
    }
    properties
}

/// A list's rows, or the first 10,000 of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// How many rows match in all, when asked for.
    pub count: Option<u64>,
    /// The `$skiptoken` of the same query that continues behind these rows, when there are more and no `$top` was given.
    pub next: Option<String>,
}

/// The machines that a query asks for and the caller may know of, by id unless it says otherwise. Health is as at the
/// time `now`.
///
/// # Errors
/// [`StoreError::Query`] when the query's token is not of its order.
pub fn machine_list(
    tx: &Tx<'_>,
    query: &Query,
    access: &MachineAccess,
    now: Timestamp,
) -> Result<Page<Machine>, StoreError> {
    list(tx, &MACHINE, query, access, now.minus(INACTIVE_AFTER), LIMITS)
}

/// The machine actions that a query asks for, newest first unless it says otherwise, of the machines that the caller
/// may know of: it is the group that counts in which the machine is now.
///
/// # Errors
/// [`StoreError::Query`] when the query's token is not of its order.
pub fn machine_action_list(
    tx: &Tx<'_>,
    query: &Query,
    access: &MachineAccess,
) -> Result<Page<MachineAction>, StoreError> {
    list(tx, &MACHINE_ACTION, query, access, Timestamp::default(), LIMITS)
}

/// What is listed.
struct Entity<T> {
    table: &'static str,
    columns: &'static [Column],
    /// The property that orders a list whose query does not say, before the id.
    default_order: (&'static str, Direction),
    /// The index with that order.
    order_index: &'static str,
    /// The order's index holds every property that may be filtered by, or an index of its own does.
    covered: bool,
    /// The indexes that rows can be sought in.
    indexes: &'static [Index],
    select: &'static str,
    read: fn(&Row<'_>) -> Result<T, StoreError>,
}

/// An index that begins with the column of a property.
#[derive(Clone, Copy)]
struct Index {
    name: &'static str,
    property: &'static str,
    /// Rows with equal values are in the entity's default order.
    in_order: bool,
}

const fn index(name: &'static str, property: &'static str) -> Index {
    Index { name, property, in_order: true }
}

const MACHINE: Entity<Machine> = Entity {
    table: "machine",
    columns: MACHINE_COLUMNS,
    default_order: ("id", Direction::Ascending),
    order_index: "machine_list",
    covered: true,
    indexes: &[
        index("sqlite_autoindex_machine_1", "id"),
        index("machine_name", "computerDnsName"),
        index("machine_last_seen", LAST_SEEN),
        index("machine_last_ip", "lastIpAddress"),
        index("machine_of_group", GROUP),
    ],
    select: machine::COLUMNS,
    read: machine::read,
};

const MACHINE_ACTION: Entity<MachineAction> = Entity {
    table: "machine_action",
    columns: MACHINE_ACTION_COLUMNS,
    default_order: (CREATED, Direction::Descending),
    order_index: "machine_action_created",
    covered: false,
    indexes: &[
        index("sqlite_autoindex_machine_action_1", "id"),
        index("machine_action_status", "status"),
        index("machine_action_machine", "machineId"),
        index("machine_action_kind", "type"),
        index("machine_action_requestor", "requestor"),
        index("machine_action_external", "externalId"),
        index("machine_action_created", CREATED),
        Index { in_order: false, ..index("machine_action_updated", UPDATED) },
    ],
    select: machine_action::COLUMNS,
    read: machine_action::read,
};

/// A page behind a token starts behind the row that the token names, whatever has arrived since: what a row is ordered
/// by when nothing else is asked for never changes, so no row is there twice and none is missed. `$skip` counts from
/// the first page on.
fn list<T>(
    tx: &Tx<'_>,
    entity: &Entity<T>,
    query: &Query,
    access: &MachineAccess,
    inactive_since: Timestamp,
    limits: Limits,
) -> Result<Page<T>, StoreError> {
    let mut plan = Plan::new(tx, entity, query, access, inactive_since, limits)?;
    let count = if query.count { Some(count_rows(tx, plan.count()?)?) } else { None };
    if query.top == Some(0) {
        return Ok(Page { rows: Vec::new(), count, next: None });
    }
    // One row more than a page says whether there is another.
    let limit = query.top.unwrap_or(TOP_MAX + 1);
    let mut page = Page { rows: Vec::new(), count, next: None };
    for statement in plan.statements(limit)? {
        page = Page { count, ..rows(tx, entity, query, &plan.order, statement)? };
        if page.next.is_some() || page.rows.len() >= limit as usize {
            break;
        }
    }
    Ok(page)
}

/// The page that a statement yields.
fn rows<T>(
    tx: &Tx<'_>,
    entity: &Entity<T>,
    query: &Query,
    order: &Order,
    statement: Statement,
) -> Result<Page<T>, StoreError> {
    let mut prepared = tx.0.prepare_cached(&statement.sql)?;
    let places = prepared.parameter_count();
    let mut found = prepared.query(params_from_iter(statement.values.into_iter().take(places)))?;
    let page_rows = if query.top.is_some() { usize::MAX } else { TOP_MAX as usize };
    let (mut rows, mut last, mut next) = (Vec::new(), None, None);
    while let Some(row) = found.next()? {
        if rows.len() == page_rows {
            next = last;
            break;
        }
        rows.push((entity.read)(row)?);
        if rows.len() == page_rows {
            last = Some(order.token(row)?);
        }
    }
    Ok(Page { rows, count: None, next })
}

fn count_rows(tx: &Tx<'_>, statement: Option<Statement>) -> Result<u64, StoreError> {
    let Some(Statement { sql, values }) = statement else { return Ok(0) };
    let mut prepared = tx.0.prepare_cached(&sql)?;
    let places = prepared.parameter_count();
    let mut rows = prepared.query(params_from_iter(values.into_iter().take(places)))?;
    let row = rows.next()?.ok_or_else(|| StoreError::Damaged("no count came back".to_owned()))?;
    count(row, "rows")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{kind_number, phase_number};
    use domain::machine_action::{Kind, Phase};
    use rusqlite::Connection;

    fn database() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        crate::migrations::run(&mut connection).unwrap();
        connection
    }

    /// So that every way is taken with a few rows: `few` for indexes, and for a page that is read in order a look at
    /// all rows or at one.
    const EVERY_WAY: [Limits; 3] =
        [LIMITS, Limits { few: -1, looked_at: 1_000_000 }, Limits { few: 5, looked_at: 1 }];

    /// How SQLite carries out the first statement of a query, when an index holds few rows or when it holds many.
    fn plan<T>(
        connection: &Connection,
        entity: &Entity<T>,
        schema: &'static Schema,
        query: &str,
        limits: Limits,
    ) -> String {
        let tx = Tx::new(connection);
        let query = odata::parse(query, schema).unwrap();
        let since = Timestamp::default();
        let mut plan = Plan::new(&tx, entity, &query, &MachineAccess::All, since, limits).unwrap();
        let statements = plan.statements(101).unwrap();
        let Some(Statement { sql, values }) = statements.into_iter().next() else {
            return "NOTHING".to_owned();
        };
        let explain = format!("EXPLAIN QUERY PLAN {sql}");
        let mut statement = tx.0.prepare_cached(&explain).unwrap();
        let places = statement.parameter_count();
        let steps = statement
            .query_map(params_from_iter(values.into_iter().take(places)), |row| {
                row.get::<_, String>("detail")
            })
            .unwrap();
        steps.map(Result::unwrap).collect::<Vec<_>>().join("; ")
    }

    const FEW: Limits = LIMITS;
    const MANY: Limits = Limits { few: -1, ..LIMITS };

    fn check_plans<T>(entity: &Entity<T>, schema: &'static Schema, table: &[(&str, Limits, &str)]) {
        let connection = database();
        for (query, limits, way) in table {
            let plan = plan(&connection, entity, schema, query, *limits);
            assert!(plan.contains(way), "{query}:\n{plan}\nexpected {way}");
            // Nothing is sorted but what was found in pieces of an index, and what has no index.
            let sorts = plan.contains("USE TEMP B-TREE") && !plan.contains("CO-ROUTINE page");
            assert!(!sorts || query.contains("$orderby=t"), "{query}:\n{plan}");
        }
    }

    #[test]
    fn machine_plans() {
        let by_id = "USING COVERING INDEX machine_list";
        check_plans(
            &MACHINE,
            &MACHINES,
            &[
                ("", MANY, "SCAN machine USING INDEX machine_list"),
                ("$orderby=id desc", MANY, "SCAN machine USING INDEX machine_list"),
                ("$orderby=computerDnsName desc", MANY, "SCAN machine USING COVERING INDEX machine_name"),
                ("$orderby=lastSeen", MANY, "SCAN machine USING COVERING INDEX machine_last_seen"),
                ("$filter=id eq 'a'", FEW, "SEARCH machine USING INDEX sqlite_autoindex_machine_1 (id=?)"),
                ("$filter=id gt 'a'", MANY, "SEARCH machine USING COVERING INDEX machine_list (id>?)"),
                (
                    "$filter=computerDnsName eq 'a'",
                    FEW,
                    "SEARCH machine USING INDEX machine_name (computer_dns_name=?)",
                ),
                (
                    "$filter=startswith(computerDnsName,'a')",
                    FEW,
                    "COVERING INDEX machine_name (computer_dns_name>? AND computer_dns_name<?)",
                ),
                ("$filter=startswith(computerDnsName,'a')", MANY, by_id),
                ("$filter=contains(computerDnsName,'a')", FEW, by_id),
                ("$filter=lastIpAddress eq 'a'", FEW, "INDEX machine_last_ip (last_ip_address=?)"),
                ("$filter=lastIpAddress eq null", FEW, "INDEX machine_last_ip (last_ip_address=?)"),
                ("$filter=machineTags/any(t: t eq 'a')", FEW, "COVERING INDEX machine_tag_tag (tag=?)"),
                ("$filter=version eq 'a'", FEW, by_id),
                ("$filter=osPlatform ne 'a'", FEW, by_id),
                ("$filter=lastSeen gt 2026-01-31Z", FEW, "COVERING INDEX machine_last_seen (last_seen>?)"),
                ("$filter=healthStatus eq 'Active'", FEW, "COVERING INDEX machine_last_seen (last_seen>?)"),
                ("$filter=healthStatus ne 'Active'", FEW, "COVERING INDEX machine_last_seen (last_seen<?)"),
                ("$filter=healthStatus eq 'Active'", MANY, "INDEX machine_list"),
                ("$filter=healthStatus eq 'NoSensorData'", MANY, "NOTHING"),
                ("$filter=rbacGroupId eq 7", MANY, "INDEX machine_of_group (machine_group=?)"),
                ("$filter=rbacGroupName eq 'a'", FEW, by_id),
                ("$filter=executionRestriction eq 'Restricted'", FEW, by_id),
                ("$filter=executionRestriction/policy eq 'a'", FEW, by_id),
                ("$filter=executionRestriction/drift eq true", FEW, by_id),
                ("$filter=executionRestriction/endsAt ne null", FEW, by_id),
                ("$filter=riskScore eq 'High'", FEW, "NOTHING"),
                ("$filter=aadDeviceId ne null and id eq 'a'", FEW, "NOTHING"),
                ("$filter=riskScore eq 'None'", FEW, by_id),
            ],
        );
    }

    #[test]
    fn machine_action_plans() {
        let newest_first = "SCAN machine_action USING INDEX machine_action_created";
        check_plans(
            &MACHINE_ACTION,
            &MACHINE_ACTIONS,
            &[
                ("", MANY, newest_first),
                ("$orderby=creationDateTimeUtc", MANY, newest_first),
                (
                    "$orderby=lastUpdateDateTimeUtc desc",
                    MANY,
                    "SCAN machine_action USING COVERING INDEX machine_action_updated",
                ),
                ("$orderby=type", MANY, "SCAN machine_action"),
                (
                    "$filter=id eq 00112233-4455-6677-8899-aabbccddeeff",
                    FEW,
                    "SEARCH machine_action USING INDEX sqlite_autoindex_machine_action_1 (id=?)",
                ),
                ("$filter=status eq 'Pending'", MANY, "INDEX machine_action_status (<expr>=?)"),
                ("$filter=status ne 'Succeeded'", MANY, "MERGE (UNION ALL)"),
                ("$filter=status eq 'Failed' or status eq 'TimeOut'", MANY, "MERGE (UNION ALL)"),
                ("$filter=machineId eq 'a'", MANY, "INDEX machine_action_machine (machine=?)"),
                ("$filter=machineId gt 'a'", FEW, "COVERING INDEX machine_action_machine (machine>?)"),
                ("$filter=machineId gt 'a'", MANY, newest_first),
                ("$filter=requestor eq 'a'", MANY, "INDEX machine_action_requestor (requestor=?)"),
                ("$filter=requestor ne 'a'", FEW, "COVERING INDEX machine_action_requestor (requestor>?)"),
                (
                    "$filter=requestor eq 'a' and status eq 'Failed'",
                    FEW,
                    "INDEX machine_action_status (<expr>=?)",
                ),
                ("$filter=externalId eq 'a'", MANY, "INDEX machine_action_external (external_id=?)"),
                ("$filter=externalId eq null", MANY, "INDEX machine_action_external (external_id=?)"),
                ("$filter=externalId ne null", FEW, "COVERING INDEX machine_action_external (external_id>?)"),
                ("$filter=type eq 'UnrestrictCodeExecution'", MANY, "INDEX machine_action_kind (kind=?)"),
                (
                    "$filter=creationDateTimeUtc gt 2026-01-31Z",
                    FEW,
                    "SEARCH machine_action USING INDEX machine_action_created (created_at>?)",
                ),
                (
                    "$filter=lastUpdateDateTimeUtc gt 2026-01-31Z",
                    FEW,
                    "COVERING INDEX machine_action_updated (updated_at>?)",
                ),
                // Nothing that was created later can be among them.
                (
                    "$filter=lastUpdateDateTimeUtc lt 2026-01-31Z",
                    MANY,
                    "SEARCH machine_action USING INDEX machine_action_created (created_at<?)",
                ),
            ],
        );
    }

    #[test]
    fn a_next_page_starts_at_its_place_in_the_index() {
        let connection = database();
        let tx = Tx::new(&connection);
        let id = domain::machine::MachineId([7; 20]);
        machine::machine_enroll(&tx, id, "", "n", Timestamp::default()).unwrap();
        for (query, way) in [
            ("", "SEARCH machine USING INDEX machine_list (id>?)"),
            ("$orderby=lastSeen desc", "SEARCH machine USING COVERING INDEX machine_last_seen (last_seen<?)"),
            (
                "$filter=computerDnsName eq 'n'",
                "SEARCH machine USING INDEX machine_name (computer_dns_name=? AND id>?)",
            ),
        ] {
            let parsed = odata::parse(query, &MACHINES).unwrap();
            let since = Timestamp::default();
            let mut first = Plan::new(&tx, &MACHINE, &parsed, &MachineAccess::All, since, MANY).unwrap();
            let Statement { sql, values } = first.statements(2).unwrap().remove(0);
            let mut statement = tx.0.prepare_cached(&sql).unwrap();
            let places = statement.parameter_count();
            let token = statement
                .query_one(params_from_iter(values.into_iter().take(places)), |row| {
                    Ok(first.order.token(row).unwrap())
                })
                .unwrap();
            let separator = if query.is_empty() { "" } else { "&" };
            let next = format!("{query}{separator}$skiptoken={token}");
            let plan = plan(&connection, &MACHINE, &MACHINES, &next, MANY);
            assert!(plan.contains(way), "{query}:\n{plan}\nexpected {way}");
        }
    }

    /// Rows in which every value is frequent, rare, at one end of the order, or in none.
    fn fill(connection: &Connection) {
        connection
            .execute_batch(
                "INSERT INTO machine_group (id, name, description, rank) VALUES (1, 'one', '', 1), (2, 'two', '', 2);
                 WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99)
                 INSERT INTO machine (id, incarnation, gate_key, computer_dns_name, os_platform, os_version, os_build,
                     os_architecture, agent_version, ip_addresses, last_ip_address, first_seen, last_seen,
                     desired_restricted, desired_generation, wanted_generation, policy_name, reported_restricted,
                     reported_generation, machine_group, ends_at)
                 SELECT printf('%040x', i * 7919 % 100), 1, '', 'n' || (i % 9), 'Linux', 'v' || (i % 40 = 0), '', '', '',
                     '', CASE WHEN i % 3 THEN 'ip' || (i % 4) END, 1, i % 50, i > 97, i % 3, i % 2,
                     CASE WHEN i % 5 = 0 THEN 'p' END, CASE WHEN i % 7 THEN i % 2 END, i % 3,
                     CASE WHEN i < 3 THEN 1 ELSE 2 * (i % 2) END, CASE WHEN i = 50 THEN 9 END FROM n;
                 WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 399)
                 INSERT INTO machine_action (id, machine, computer_dns_name, store_epoch, incarnation, generation, kind,
                     phase, open, requestor, comment, source, external_id, created_at, updated_at, deadline, signed_order)
                 SELECT printf('%08x-0000-7000-8000-000000000000', i * 7919 % 400), printf('%040x', i % 100), 'n', 1, 1, i,
                     i < 3, CASE WHEN i < 5 THEN 7 WHEN i = 200 THEN 8 ELSE 4 END, 0,
                     CASE WHEN i < 4 THEN 'bob' ELSE 'app ' || (i % 3) END, '', 0,
                     CASE WHEN i % 60 = 1 THEN 'x' || i END, i / 3, i / 3 + i % 11, 9, '' FROM n;
                 INSERT INTO machine_tag (machine, tag) SELECT id, 'even' FROM machine WHERE id < printf('%040x', 50);
                 INSERT INTO machine_tag (machine, tag) SELECT id, 'rare' FROM machine WHERE id = printf('%040x', 99);",
            )
            .unwrap();
    }

    fn check_every_way<T: PartialEq + std::fmt::Debug>(
        entity: &Entity<T>,
        schema: &'static Schema,
        filters: &[&str],
        orders: &[&str],
    ) {
        let connection = database();
        fill(&connection);
        let tx = Tx::new(&connection);
        let accesses =
            [MachineAccess::All, MachineAccess::Groups(vec![1]), MachineAccess::Groups(vec![0, 1, 2])];
        let mut compared = 0;
        for (filter, order) in
            filters.iter().flat_map(|filter| orders.iter().map(move |order| (filter, order)))
        {
            for cut in ["$top=5", "$top=1000", "$top=7&$skip=3"] {
                let text = format!("$count=true&{cut}&{filter}{order}");
                let query = odata::parse(&text, schema).unwrap();
                for access in &accesses {
                    let page = |limits| {
                        list(&tx, entity, &query, access, Timestamp::from_ticks(20), limits).unwrap()
                    };
                    let pages = EVERY_WAY.map(page);
                    assert!(pages.iter().all(|page| *page == pages[0]), "{text} {access:?}: {pages:#?}");
                    compared += pages[0].rows.len();
                }
            }
        }
        assert!(compared > 1000, "{compared}");
    }

    #[test]
    fn every_way_finds_the_same_machines() {
        let filters = [
            "",
            "$filter=id gt '00000000000000000000000000000000000000'",
            "$filter=computerDnsName in ('n1','n7','no')",
            "$filter=not (computerDnsName eq 'n1')",
            "$filter=startswith(computerDnsName,'n') and osPlatform eq 'Linux'",
            "$filter=version eq 'v1'",
            "$filter=healthStatus eq 'Inactive'",
            "$filter=healthStatus ne 'Inactive' and lastSeen lt 1970-01-01T00:00:00.0000040Z",
            "$filter=lastIpAddress eq null or lastIpAddress eq 'ip1'",
            "$filter=lastIpAddress ne 'ip1'",
            "$filter=rbacGroupId ne 2",
            "$filter=rbacGroupName eq 'two'",
            "$filter=executionRestriction/endsAt ne null",
            "$filter=executionRestriction/drift eq true and rbacGroupId ge 1",
            "$filter=machineTags/any(t: t eq 'even')",
            "$filter=not machineTags/any(t: contains(t,'a'))",
            "$filter=riskScore eq 'None' or deviceValue eq 'High'",
        ];
        let orders = ["", "&$orderby=id desc", "&$orderby=computerDnsName desc,lastIpAddress"];
        check_every_way(&MACHINE, &MACHINES, &filters, &orders);
    }

    #[test]
    fn every_way_finds_the_same_machine_actions() {
        let filters = [
            "",
            "$filter=status eq 'TimeOut'",
            "$filter=status ne 'Succeeded'",
            "$filter=not (status eq 'Failed' or status eq 'TimeOut')",
            "$filter=type eq 'UnrestrictCodeExecution'",
            "$filter=type ne 'UnrestrictCodeExecution' and requestor eq 'bob'",
            "$filter=requestor ne 'app 1'",
            "$filter=requestor gt 'app 1' and status eq 'Failed'",
            "$filter=contains(requestor,'o')",
            "$filter=endswith(externalId,'1')",
            "$filter=externalId ne null",
            "$filter=externalId eq null",
            "$filter=machineId in ('0000000000000000000000000000000000000007','x')",
            "$filter=machineId lt '0000000000000000000000000000000000000007'",
            "$filter=lastUpdateDateTimeUtc lt 1970-01-01T00:00:00.0000040Z",
            "$filter=lastUpdateDateTimeUtc ge 1970-01-01T00:00:00.0000120Z",
            "$filter=creationDateTimeUtc gt 1970-01-01T00:00:00.0000040Z and lastUpdateDateTimeUtc le 1970-01-01T00:00:00.0000090Z",
            "$filter=id in (00000007-0000-7000-8000-000000000000,00000009-0000-7000-8000-000000000000)",
        ];
        let orders = ["", "&$orderby=creationDateTimeUtc", "&$orderby=lastUpdateDateTimeUtc desc,externalId"];
        check_every_way(&MACHINE_ACTION, &MACHINE_ACTIONS, &filters, &orders);
    }

    #[test]
    fn enums_stand_for_the_stored_numbers() {
        let connection = database();
        let names = |kind| if let Type::Enum(names) = kind { names } else { panic!("not an enum") };
        let status = MACHINE_ACTION_COLUMNS.iter().find(|column| column.property.name == "status").unwrap();
        for phase in Phase::ALL {
            let sql = status.sql.replace("phase", &phase_number(phase).to_string());
            let position: u32 = connection.query_one(&format!("SELECT {sql}"), [], |row| row.get(0)).unwrap();
            assert_eq!(names(STATUS)[position as usize], phase.status().name());
        }
        assert_eq!(
            names(KIND)[usize::try_from(kind_number(Kind::Restrict)).unwrap()],
            "RestrictCodeExecution"
        );
        assert_eq!(
            names(KIND)[usize::try_from(kind_number(Kind::Unrestrict)).unwrap()],
            "UnrestrictCodeExecution"
        );
    }
}
