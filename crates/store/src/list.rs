//! Lists: what queries may name of machines and machine actions, and how a query becomes SQL.
//!
//! Owns the properties and where their values are, the order of a list and its pages. What a caller wrote reaches SQL
//! as bound values only. Deliberately parses nothing: that is done by `odata`, against the schemas given here.

mod condition;
mod order;

use domain::machine::{INACTIVE_AFTER, Machine};
use domain::machine_action::MachineAction;
use domain::time::Timestamp;
use odata::{Direction, Property, Query, Schema, TOP_MAX, Type};
use rusqlite::types::Value as Bound;
use rusqlite::{Row, params_from_iter};

use crate::row::count;
use crate::{StoreError, Tx, machine, machine_action};
use condition::Builder;
use order::Order;

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
const HEALTH: Type = Type::Enum(&[
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

const MACHINE_COLUMNS: &[Column; 23] = &[
    column("id", Type::String, "id").lower_case(),
    column("computerDnsName", Type::String, "computer_dns_name"),
    column("version", Type::String, "os_version"),
    column("osPlatform", Type::String, "os_platform"),
    column("lastSeen", Type::DateTime, "last_seen"),
    column("lastIpAddress", Type::String, "last_ip_address").nullable(),
    column("machineTags", Type::Strings, "machine_tag"),
    column("healthStatus", HEALTH, "CASE WHEN last_seen > {inactive_since} THEN 0 ELSE 1 END"),
    // A machine is known because it enrolled. There are no groups, no directory, and no assessment.
    column("onboardingStatus", ONBOARDING, ZERO),
    column("rbacGroupId", Type::Integer, ZERO),
    column("rbacGroupName", Type::String, "NULL").nullable(),
    column("aadDeviceId", Type::Guid, "NULL").nullable(),
    column("riskScore", RISK, ZERO),
    column("exposureLevel", EXPOSURE, ZERO),
    column("deviceValue", DEVICE_VALUE, ZERO),
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
         AND reported_generation BETWEEN wanted_generation AND desired_generation THEN 0 ELSE 1 END",
    ),
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
    column("creationDateTimeUtc", Type::DateTime, "created_at"),
    column("lastUpdateDateTimeUtc", Type::DateTime, "updated_at"),
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
}

const fn column(name: &'static str, kind: Type, sql: &'static str) -> Column {
    Column { property: Property { name, kind }, sql, may_be_null: false, lower_case: false }
}

impl Column {
    const fn nullable(self) -> Self {
        Self { may_be_null: true, ..self }
    }

    const fn lower_case(self) -> Self {
        Self { lower_case: true, ..self }
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

/// The machines that a query asks for, by id unless it says otherwise. Health is as at the time `now`.
///
/// # Errors
/// [`StoreError::Query`] when the query's token is not of its order.
pub fn machine_list(tx: &Tx<'_>, query: &Query, now: Timestamp) -> Result<Page<Machine>, StoreError> {
    list(tx, &MACHINE, query, now.minus(INACTIVE_AFTER))
}

/// The machine actions that a query asks for, newest first unless it says otherwise.
///
/// # Errors
/// [`StoreError::Query`] when the query's token is not of its order.
pub fn machine_action_list(tx: &Tx<'_>, query: &Query) -> Result<Page<MachineAction>, StoreError> {
    list(tx, &MACHINE_ACTION, query, Timestamp::default())
}

/// What is listed.
struct Entity<T> {
    table: &'static str,
    columns: &'static [Column],
    /// The property that orders a list whose query does not say, before the id.
    default_order: (&'static str, Direction),
    select: &'static str,
    read: fn(&Row<'_>) -> Result<T, StoreError>,
}

const MACHINE: Entity<Machine> = Entity {
    table: "machine",
    columns: MACHINE_COLUMNS,
    default_order: ("id", Direction::Ascending),
    select: machine::COLUMNS,
    read: machine::read,
};

const MACHINE_ACTION: Entity<MachineAction> = Entity {
    table: "machine_action",
    columns: MACHINE_ACTION_COLUMNS,
    default_order: ("creationDateTimeUtc", Direction::Descending),
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
    inactive_since: Timestamp,
) -> Result<Page<T>, StoreError> {
    let count = if query.count { Some(count_rows(tx, entity, query, inactive_since)?) } else { None };
    let Select { sql, values, order } = select(entity, query, inactive_since)?;
    let mut statement = tx.0.prepare_cached(&sql)?;
    let mut found = statement.query(params_from_iter(values))?;
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
    Ok(Page { rows, count, next })
}

/// The statement of a page.
struct Select {
    sql: String,
    values: Vec<Bound>,
    order: Order,
}

fn select<T>(entity: &Entity<T>, query: &Query, inactive_since: Timestamp) -> Result<Select, StoreError> {
    let mut builder = Builder::new(entity.columns, inactive_since);
    let condition = builder.filter(query.filter.as_ref())?;
    let order = Order::of(query, entity, &mut builder)?;
    let behind = order.behind(query.skip_token.as_deref(), &mut builder)?;
    // One row more than a page says whether there is another.
    let limit = builder.bind(i64::from(query.top.unwrap_or(TOP_MAX + 1)));
    let offset =
        builder.bind(if query.skip_token.is_some() { 0 } else { i64::from(query.skip.unwrap_or(0)) });
    let Entity { table, select, .. } = entity;
    let sql = format!(
        "SELECT {select}, {} FROM {table} WHERE {condition} AND {behind} ORDER BY {} LIMIT {limit} OFFSET {offset}",
        order.keys(),
        order.sql()
    );
    Ok(Select { sql, values: builder.into_values(), order })
}

fn count_rows<T>(
    tx: &Tx<'_>,
    entity: &Entity<T>,
    query: &Query,
    inactive_since: Timestamp,
) -> Result<u64, StoreError> {
    let mut builder = Builder::new(entity.columns, inactive_since);
    let condition = builder.filter(query.filter.as_ref())?;
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT count(*) AS rows FROM {} WHERE {condition}", entity.table))?;
    let mut rows = statement.query(params_from_iter(builder.into_values()))?;
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

    /// How SQLite carries out a query.
    fn plan<T>(connection: &Connection, entity: &Entity<T>, schema: &'static Schema, query: &str) -> String {
        let query = odata::parse(query, schema).unwrap();
        let Select { sql, values, .. } = select(entity, &query, Timestamp::default()).unwrap();
        let mut statement =
            connection.prepare(&format!("EXPLAIN QUERY PLAN {}", sql.replace('$', "?"))).unwrap();
        let steps =
            statement.query_map(params_from_iter(values), |row| row.get::<_, String>("detail")).unwrap();
        steps.map(Result::unwrap).collect::<Vec<_>>().join("; ")
    }

    const SORTS: &str = "USE TEMP B-TREE";

    /// The table's own way, which is that of its default order or of the filter's index.
    fn check_plan(plan: &str, query: &str, way: &str, sorts: bool) {
        assert!(plan.starts_with(way), "{query}:\n{plan}\nexpected {way}");
        assert_eq!(plan.contains(SORTS), sorts, "{query}:\n{plan}");
    }

    #[test]
    fn machine_plans() {
        let connection = database();
        let by_id = "SCAN machine USING INDEX sqlite_autoindex_machine_1;";
        for (query, way, sorts) in [
            ("", by_id, false),
            ("$orderby=id desc", by_id, false),
            ("$orderby=computerDnsName desc", "SCAN machine USING INDEX machine_name;", false),
            ("$orderby=lastSeen", "SCAN machine USING INDEX machine_last_seen;", false),
            ("$filter=id eq 'a'", "SEARCH machine USING INDEX sqlite_autoindex_machine_1 (id=?)", false),
            (
                "$filter=computerDnsName eq 'a'",
                "SEARCH machine USING INDEX machine_name (computer_dns_name=?)",
                false,
            ),
            // Few rows, sorted after they were found.
            ("$filter=startswith(computerDnsName,'a')", "SEARCH machine USING INDEX machine_name (", true),
            (
                "$filter=lastIpAddress eq 'a'",
                "SEARCH machine USING INDEX machine_last_ip (last_ip_address=?)",
                false,
            ),
            (
                "$filter=machineTags/any(t: t eq 'a')",
                "SEARCH machine USING INDEX sqlite_autoindex_machine_1 (id=?); \
              LIST SUBQUERY 2; SEARCH machine_tag USING COVERING INDEX machine_tag_tag (tag=?)",
                false,
            ),
            ("$filter=version eq 'a'", by_id, false),
            ("$filter=osPlatform eq 'a'", by_id, false),
            ("$filter=lastSeen gt 2026-01-31Z", by_id, false),
            ("$filter=healthStatus eq 'Active'", by_id, false),
            ("$filter=executionRestriction eq 'Restricted'", by_id, false),
            ("$filter=executionRestriction/policy eq 'a'", by_id, false),
            ("$filter=executionRestriction/drift eq true", by_id, false),
            ("$filter=riskScore eq 'None'", by_id, false),
        ] {
            check_plan(&plan(&connection, &MACHINE, &MACHINES, query), query, way, sorts);
        }
    }

    #[test]
    fn machine_action_plans() {
        let connection = database();
        let newest_first = "SCAN machine_action USING INDEX machine_action_created";
        for (query, way, sorts) in [
            ("", newest_first, false),
            ("$orderby=creationDateTimeUtc", newest_first, false),
            (
                "$orderby=lastUpdateDateTimeUtc desc",
                "SCAN machine_action USING INDEX machine_action_updated",
                false,
            ),
            (
                "$filter=id eq 00112233-4455-6677-8899-aabbccddeeff",
                "SEARCH machine_action USING INDEX sqlite_autoindex_machine_action_1 (id=?)",
                false,
            ),
            (
                "$filter=status eq 'Pending'",
                "SEARCH machine_action USING INDEX machine_action_status (<expr>=?)",
                false,
            ),
            (
                "$filter=machineId eq 'a'",
                "SEARCH machine_action USING INDEX machine_action_machine (machine=?)",
                false,
            ),
            (
                "$filter=requestor eq 'a'",
                "SEARCH machine_action USING INDEX machine_action_requestor (requestor=?)",
                false,
            ),
            (
                "$filter=externalId eq 'a'",
                "SEARCH machine_action USING INDEX machine_action_external (external_id=?)",
                false,
            ),
            (
                "$filter=creationDateTimeUtc gt 2026-01-31Z",
                "SEARCH machine_action USING INDEX machine_action_created (created_at>?)",
                false,
            ),
            ("$filter=type eq 'RestrictCodeExecution'", newest_first, false),
            ("$filter=lastUpdateDateTimeUtc gt 2026-01-31Z", newest_first, false),
        ] {
            check_plan(&plan(&connection, &MACHINE_ACTION, &MACHINE_ACTIONS, query), query, way, sorts);
        }
    }

    #[test]
    fn a_next_page_starts_at_its_place_in_the_index() {
        let connection = database();
        let id = domain::machine::MachineId([7; 20]);
        machine::machine_enroll(&Tx::new(&connection), id, "", "n", Timestamp::default()).unwrap();
        for (query, way) in [
            ("", "SEARCH machine USING INDEX sqlite_autoindex_machine_1 (id>?)"),
            ("$orderby=lastSeen desc", "SEARCH machine USING INDEX machine_last_seen (last_seen<?)"),
            (
                "$filter=computerDnsName eq 'n'",
                "SEARCH machine USING INDEX machine_name (computer_dns_name=? AND id>?)",
            ),
        ] {
            let parsed = odata::parse(query, &MACHINES).unwrap();
            let Select { sql, values, order } = select(&MACHINE, &parsed, Timestamp::default()).unwrap();
            let mut statement = connection.prepare(&sql.replace('$', "?")).unwrap();
            let token =
                statement.query_one(params_from_iter(values), |row| Ok(order.token(row).unwrap())).unwrap();
            let next = if query.is_empty() {
                format!("$skiptoken={token}")
            } else {
                format!("{query}&$skiptoken={token}")
            };
            check_plan(&plan(&connection, &MACHINE, &MACHINES, &next), &next, way, false);
        }
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
