//! The query string: its options, each at most once, and the grammar of all but `$filter`.

use crate::error::excerpt;
use crate::query::{Direction, Filter, OrderBy, Query};
use crate::schema::{Schema, Type};
use crate::{Error, FILTER_BYTES_MAX, ORDER_BY_MAX, QUERY_BYTES_MAX, TOP_MAX, filter};

/// An option that is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opt {
    Filter,
    OrderBy,
    Top,
    Skip,
    Select,
    Count,
    SkipToken,
}

impl Opt {
    const ALL: [Self; 7] =
        [Self::Filter, Self::OrderBy, Self::Top, Self::Skip, Self::Select, Self::Count, Self::SkipToken];

    fn name(self) -> &'static str {
        match self {
            Self::Filter => "$filter",
            Self::OrderBy => "$orderby",
            Self::Top => "$top",
            Self::Skip => "$skip",
            Self::Select => "$select",
            Self::Count => "$count",
            Self::SkipToken => "$skiptoken",
        }
    }
}

/// System options that mean nothing here, without their `$`.
const FOREIGN: [&str; 8] =
    ["expand", "search", "apply", "compute", "format", "index", "deltatoken", "schemaversion"];

/// Reads the raw query string of a request, without its `?`: percent-encoded, with `%20` or `+` for a space.
///
/// Names without `$` are other people's, such as `api-version`, and are passed over; but not those that are an option's
/// but for the `$`: whoever forgot it would get every row.
///
/// # Errors
/// [`Error`] for the first option that is unknown, repeated, malformed, or beyond a limit.
pub fn parse(raw: &str, schema: &'static Schema) -> Result<Query, Error> {
    if raw.len() > QUERY_BYTES_MAX {
        return Err(too_long("the query", raw, QUERY_BYTES_MAX));
    }
    let mut query = Query::default();
    let mut seen = Vec::new();
    for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode("the name of an option", name)?;
        let known = Opt::ALL.into_iter().find(|option| option.name().eq_ignore_ascii_case(&name));
        let Some(option) = known else {
            if is_foreign(&name) {
                continue;
            }
            return Err(unknown(&name));
        };
        if seen.contains(&option) {
            return Err(Error::at(option.name(), &name, 0, "the option once only"));
        }
        seen.push(option);
        let value = decode(option.name(), value)?;
        match option {
            Opt::Filter => query.filter = Some(filter(&value, schema)?),
            Opt::OrderBy => query.order_by = order_by(&value, schema)?,
            Opt::Top => query.top = Some(number(option, &value, TOP_MAX)?),
            Opt::Skip => query.skip = Some(number(option, &value, u32::MAX)?),
            Opt::Select => query.select = select(&value, schema)?,
            Opt::Count => query.count = boolean(option, &value)?,
            Opt::SkipToken => query.skip_token = Some(value),
        }
    }
    Ok(query)
}

/// The limit holds for the printed form too, which has spaces that may be left out: what was read can be read again.
fn filter(value: &str, schema: &'static Schema) -> Result<Filter, Error> {
    let within = |text: &str| {
        if text.len() <= FILTER_BYTES_MAX {
            Ok(())
        } else {
            Err(too_long(Opt::Filter.name(), text, FILTER_BYTES_MAX))
        }
    };
    within(value)?;
    let filter = filter::parse(value, schema)?;
    within(&filter.to_string())?;
    Ok(filter)
}

fn too_long(option: &str, value: &str, limit: usize) -> Error {
    Error {
        option: option.to_owned(),
        position: 1,
        expected: format!("at most {limit} bytes"),
        found: format!("{} bytes", value.len()),
    }
}

/// Whether a name that no option has is none of ours.
fn is_foreign(name: &str) -> bool {
    !(name.is_empty() || name.starts_with('$') || is_option_without_dollar(name))
}

fn is_option_without_dollar(name: &str) -> bool {
    let options = Opt::ALL.into_iter().filter_map(|option| option.name().strip_prefix('$'));
    options.chain(FOREIGN).any(|option| option.eq_ignore_ascii_case(name))
}

fn unknown(name: &str) -> Error {
    if is_option_without_dollar(name) {
        let expected = format!("a dollar sign before the name: write ${}", name.to_ascii_lowercase());
        return Error::at(&excerpt(name), name, 0, expected);
    }
    let names = Opt::ALL.map(Opt::name).join(", ");
    let option = if name.is_empty() { "an option without name".to_owned() } else { excerpt(name) };
    Error { expected: format!("one of {names}"), ..Error::at(&option, name, 0, "") }
}

/// Undoes percent-encoding. NUL is refused: no stored text holds it, and databases end text there.
fn decode(option: &str, raw: &str) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let at = raw.len() - rest.len();
        rest = tail;
        let fail = |expected: &str| Err(Error::at(option, raw, at, expected));
        bytes.push(match first {
            0 => return fail("no NUL"),
            b'+' => b' ',
            b'%' => {
                let Some((byte, tail)) = hex_byte(tail) else {
                    return fail("% and two hexadecimal digits, other than %00");
                };
                rest = tail;
                byte
            }
            plain => *plain,
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let value = String::from_utf8_lossy(error.as_bytes());
        Error::at(option, &value, valid, "UTF-8")
    })
}

fn hex_byte(text: &[u8]) -> Option<(u8, &[u8])> {
    let ([high, low], rest) = text.split_first_chunk::<2>()?;
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    let byte = digit(*high)? << 4 | digit(*low)?;
    (byte != 0).then_some((byte, rest))
}

fn number(option: Opt, value: &str, limit: u32) -> Result<u32, Error> {
    let number = value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten();
    let possible = number.filter(|number| *number <= limit);
    possible.ok_or_else(|| Error::at(option.name(), value, 0, format!("a whole number from 0 to {limit}")))
}

fn boolean(option: Opt, value: &str) -> Result<bool, Error> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Error::at(option.name(), value, 0, "true or false")),
    }
}

fn order_by(value: &str, schema: &'static Schema) -> Result<Vec<OrderBy>, Error> {
    let mut terms: Vec<OrderBy> = Vec::new();
    for (at, item) in items(value) {
        let fail = |at, expected: String| Err(Error::at(Opt::OrderBy.name(), value, at, expected));
        if terms.len() == ORDER_BY_MAX {
            return fail(at, format!("at most {ORDER_BY_MAX} properties"));
        }
        let (name, rest) = item.split_once(' ').unwrap_or((item, ""));
        let sorts = |kind| kind != Type::Strings;
        let Some(property) = schema.property(name).filter(|property| sorts(property.kind)) else {
            return fail(at, format!("one of {}", schema.names(sorts)));
        };
        if terms.iter().any(|term| term.property == property) {
            return fail(at, format!("{} once only", property.name));
        }
        let direction = match rest.trim() {
            "" => Direction::Ascending,
            word if word.eq_ignore_ascii_case("asc") => Direction::Ascending,
            word if word.eq_ignore_ascii_case("desc") => Direction::Descending,
            _ => {
                return fail(
                    at + item.len() - rest.trim_start().len(),
                    "asc or desc, then a comma".to_owned(),
                );
            }
        };
        terms.push(OrderBy { property, direction });
    }
    Ok(terms)
}

fn select(value: &str, schema: &'static Schema) -> Result<Option<Vec<&'static str>>, Error> {
    if value.trim() == "*" {
        return Ok(None);
    }
    let mut fields = Vec::new();
    for (at, item) in items(value) {
        let Some(field) = schema.field(item) else {
            return Err(Error::at(
                Opt::Select.name(),
                value,
                at,
                format!("* or one of {}", schema.fields.join(", ")),
            ));
        };
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    Ok(Some(fields))
}

/// What stands between commas, without the spaces around it, each with its offset.
fn items(value: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut next = 0;
    value.split(',').map(move |item| {
        let at = next + item.len() - item.trim_start().len();
        next += item.len() + 1;
        (at, item.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{Comparison, Subject, Test, TextFunction, Value};
    use crate::{FILTER_DEPTH_MAX, Property};
    use proptest::prelude::*;

    static SCHEMA: Schema = Schema {
        fields: &["id", "name", "status", "lastSeen", "tags", "note"],
        properties: &[
            Property { name: "id", kind: Type::Guid },
            Property { name: "name", kind: Type::String },
            Property { name: "size", kind: Type::Integer },
            Property { name: "status", kind: Type::Enum(&["Pending", "InProgress"]) },
            Property { name: "lastSeen", kind: Type::DateTime },
            Property { name: "restriction/drift", kind: Type::Boolean },
            Property { name: "tags", kind: Type::Strings },
        ],
    };

    #[test]
    fn good_table() {
        for (raw, printed) in [
            ("", ""),
            ("&&", ""),
            ("$top=0", "$top=0"),
            ("%24top=10000&$skip=4294967295", "$top=10000&$skip=4294967295"),
            ("$TOP=7", "$top=7"),
            ("$count=true", "$count=true"),
            ("$count=false", ""),
            ("$select=*", ""),
            ("$select=Name,%20id,name", "$select=name,id"),
            ("$orderby=LastSeen+desc,name", "$orderby=lastSeen%20desc,name%20asc"),
            ("$orderby=%20name%20%20ASC%20,id", "$orderby=name%20asc,id%20asc"),
            ("$filter=name+eq+'a%26b%2B%3D'", "$filter=name%20eq%20'a%26b%2B%3D'"),
            ("$filter=name%20eq%20'%C3%BC'", "$filter=name%20eq%20'%C3%BC'"),
            ("$filter=name+eq+'a=b'", "$filter=name%20eq%20'a%3Db'"),
            ("$filter=lastSeen+gt+2026-01-31T01:00:00+01:00", "$filter=lastSeen%20gt%202026-01-31Z"),
            ("$skiptoken=ab%20c", "$skiptoken=ab%20c"),
            ("api-version=2024-01-01&$top=7&x=%zz&api-version", "$top=7"),
            ("filters=a&@p=1&%C3%BC", ""),
        ] {
            let query = parse(raw, &SCHEMA).unwrap_or_else(|error| panic!("{raw}: {error}"));
            assert_eq!(query.to_string(), printed, "{raw}");
            assert_eq!(parse(printed, &SCHEMA).as_ref(), Ok(&query), "{raw}");
        }
    }

    #[test]
    fn bad_table() {
        for (raw, message) in [
            (
                "$expand=x",
                "\"$expand\", position 1: expected one of $filter, $orderby, $top, $skip, $select, $count, $skiptoken, found \"$expand\"",
            ),
            (
                "filter=name",
                "\"filter\", position 1: expected a dollar sign before the name: write $filter, found \"filter\"",
            ),
            (
                "$top=1&OrderBy=id",
                "\"OrderBy\", position 1: expected a dollar sign before the name: write $orderby",
            ),
            ("expand=x", "\"expand\", position 1: expected a dollar sign before the name: write $expand"),
            ("$search=x", "\"$search\", position 1: expected one of $filter, $orderby"),
            ("$=x", "\"$\", position 1: expected one of $filter, $orderby"),
            ("=", "an option without name, position 1: expected one of $filter,"),
            ("$top=1&$Top=1", "$top, position 1: expected the option once only, found \"$Top\""),
            ("$top", "$top, position 1: expected a whole number from 0 to 10000, found the end"),
            ("$top=10001", "$top, position 1: expected a whole number from 0 to 10000, found \"10001\""),
            ("$top=-1", "$top, position 1: expected a whole number from 0 to 10000, found \"-1\""),
            ("$top=%2B1", "$top, position 1: expected a whole number from 0 to 10000, found \"+1\""),
            (
                "$top=99999999999999999999",
                "$top, position 1: expected a whole number from 0 to 10000, found \"99999999999999999999\"",
            ),
            ("$skip=1.5", "$skip, position 1: expected a whole number from 0 to 4294967295, found \"1.5\""),
            ("$count=1", "$count, position 1: expected true or false, found \"1\""),
            ("$select=", "$select, position 1: expected * or one of id, name,"),
            ("$select=id,+nome", "$select, position 5: expected * or one of id, name,"),
            (
                "$orderby=",
                "$orderby, position 1: expected one of id, name, size, status, lastSeen, restriction/drift, found the end",
            ),
            ("$orderby=tags", "$orderby, position 1: expected one of id, name, size,"),
            ("$orderby=name,", "$orderby, position 6: expected one of id, name, size,"),
            (
                "$orderby=name,size,NAME+desc",
                "$orderby, position 11: expected name once only, found \"NAME desc\"",
            ),
            ("$orderby=name+up", "$orderby, position 6: expected asc or desc, then a comma, found \"up\""),
            ("$filter=", "$filter, position 1: expected one of id, name,"),
            (
                "$filter=name%20eq%20'%",
                "$filter, position 14: expected % and two hexadecimal digits, other than %00, found \"%\"",
            ),
            (
                "$filter=%zz",
                "$filter, position 1: expected % and two hexadecimal digits, other than %00, found \"%zz\"",
            ),
            (
                "$filter=name+eq+'%00'",
                "$filter, position 10: expected % and two hexadecimal digits, other than %00, found \"%00'\"",
            ),
            ("$filter=name+eq+'%FF'", "$filter, position 10: expected UTF-8, found"),
            ("$skiptoken=a\0", "$skiptoken, position 2: expected no NUL, found \"\\0\""),
            ("%FF=1", "the name of an option, position 1: expected UTF-8, found"),
        ] {
            let error = parse(raw, &SCHEMA).expect_err(raw).to_string();
            assert!(error.starts_with(message), "{raw}:\n{error}\n{message}");
        }
    }

    #[test]
    fn lengths_have_limits() {
        let filter = |bytes: usize| format!("$filter=name+eq+'{}'", "x".repeat(bytes - "name eq ''".len()));
        assert!(parse(&filter(FILTER_BYTES_MAX), &SCHEMA).is_ok());
        let error = parse(&filter(FILTER_BYTES_MAX + 1), &SCHEMA).unwrap_err().to_string();
        assert_eq!(error, "$filter, position 1: expected at most 8192 bytes, found 8193 bytes");
        let token = |bytes: usize| format!("$skiptoken={}", "x".repeat(bytes - "$skiptoken=".len()));
        assert!(parse(&token(QUERY_BYTES_MAX), &SCHEMA).is_ok());
        assert!(parse(&token(QUERY_BYTES_MAX + 1), &SCHEMA).unwrap_err().expected.starts_with("at most"));
        let passed_over = format!("a={}", "x".repeat(QUERY_BYTES_MAX));
        assert!(parse(&passed_over, &SCHEMA).unwrap_err().expected.starts_with("at most"));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[^\0]{0,12}", "[a-c'%_&=+ ]{0,6}"]
    }

    fn value(kind: Type) -> BoxedStrategy<Value> {
        match kind {
            Type::String | Type::Strings => text().prop_map(Value::String).boxed(),
            Type::Integer => any::<i64>().prop_map(Value::Integer).boxed(),
            Type::Boolean => any::<bool>().prop_map(Value::Boolean).boxed(),
            // The years 0 to 9999.
            Type::DateTime => (-621_672_192_000_000_000..2_534_023_008_000_000_000_i64)
                .prop_map(|ticks| Value::DateTime(ticks / 10))
                .boxed(),
            Type::Guid => any::<u128>().prop_map(Value::Guid).boxed(),
            Type::Enum(names) => proptest::sample::select(names).prop_map(Value::Enum).boxed(),
        }
    }

    fn value_or_null(kind: Type) -> impl Strategy<Value = Value> {
        prop_oneof![9 => value(kind), 1 => Just(Value::Null)]
    }

    fn test(subject: Subject, kind: Type) -> BoxedStrategy<Filter> {
        let equality = (0..2_usize, value_or_null(kind))
            .prop_map(|(index, value)| Test::Compare(Comparison::ALL[index], value));
        let list = proptest::collection::vec(value_or_null(kind), 1..4).prop_map(Test::In);
        let mut tests = equality.boxed().prop_union(list.boxed()).boxed();
        if kind.has_order() {
            let order = (2..6_usize, value(kind))
                .prop_map(|(index, value)| Test::Compare(Comparison::ALL[index], value));
            tests = tests.prop_union(order.boxed()).boxed();
        }
        if kind == Type::String {
            let function =
                (0..3_usize, text()).prop_map(|(index, text)| Test::Text(TextFunction::ALL[index], text));
            tests = tests.prop_union(function.boxed()).boxed();
        }
        tests.prop_map(move |test| Filter::Test(subject, test)).boxed()
    }

    fn tree(leaf: BoxedStrategy<Filter>) -> BoxedStrategy<Filter> {
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 2..4).prop_map(Filter::And),
                proptest::collection::vec(inner.clone(), 2..4).prop_map(Filter::Or),
                inner.prop_map(|inner| Filter::Not(Box::new(inner))),
            ]
        })
        .boxed()
    }

    fn filter() -> BoxedStrategy<Filter> {
        let properties = proptest::sample::select(SCHEMA.properties.iter().collect::<Vec<_>>());
        let leaf = properties.prop_flat_map(|property| {
            if property.kind == Type::Strings {
                let inner = proptest::option::of(tree(test(Subject::Element, Type::String)));
                inner.prop_map(move |inner| Filter::Any(property, inner.map(Box::new))).boxed()
            } else {
                test(Subject::Property(property), property.kind)
            }
        });
        tree(leaf.boxed())
    }

    fn query() -> impl Strategy<Value = Query> {
        let sortable =
            SCHEMA.properties.iter().filter(|property| property.kind != Type::Strings).collect::<Vec<_>>();
        let order_by = proptest::sample::subsequence(sortable, 0..4).prop_flat_map(|properties| {
            proptest::collection::vec(any::<bool>(), properties.len()).prop_map(move |up| {
                let direction = |up| if up { Direction::Ascending } else { Direction::Descending };
                properties
                    .iter()
                    .zip(up)
                    .map(|(property, up)| OrderBy { property, direction: direction(up) })
                    .collect()
            })
        });
        let select = proptest::option::of(proptest::sample::subsequence(SCHEMA.fields.to_vec(), 1..4));
        let (top, skip) = (proptest::option::of(0..=TOP_MAX), proptest::option::of(any::<u32>()));
        let token = proptest::option::of(text());
        (proptest::option::of(filter()), order_by, top, skip, select, any::<bool>(), token).prop_map(
            |(filter, order_by, top, skip, select, count, skip_token)| Query {
                filter,
                order_by,
                top,
                skip,
                select,
                count,
                skip_token,
            },
        )
    }

    /// Pieces that lead deep into the grammar.
    fn soup() -> impl Strategy<Value = String> {
        let pieces = "$filter= $orderby= $select= $top= & name size status lastSeen tags/any( t: id eq ne gt in not and or ( \
                      ) , ' '' null startswith( 'a' 1 -9 2026-01-31Z 2026-01-31T00:00 .5 %27 %20 + %C3 ü desc true"
            .split_whitespace()
            .collect::<Vec<_>>();
        let spaced = (proptest::sample::select(pieces), any::<bool>());
        proptest::collection::vec(spaced, 0..60).prop_map(|pieces| {
            pieces.iter().flat_map(|(piece, space)| [*piece, if *space { " " } else { "" }]).collect()
        })
    }

    /// The longest inputs stay far below this in a debug build; something that reads twice per level would not.
    const QUICK: std::time::Duration = std::time::Duration::from_secs(5);

    fn parse_any(raw: &str) {
        let start = std::time::Instant::now();
        // What it reads, it prints and reads again.
        if let Ok(query) = parse(raw, &SCHEMA) {
            assert_eq!(parse(&query.to_string(), &SCHEMA), Ok(query));
        }
        assert!(start.elapsed() < QUICK, "{raw}");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_as_it_was(query in query()) {
            let printed = query.to_string();
            prop_assert_eq!(parse(&printed, &SCHEMA), Ok(query), "{}", printed);
        }

        #[test]
        fn any_text_is_answered(raw in "(?s).{0,200}") {
            parse_any(&raw);
        }

        #[test]
        fn any_mix_of_pieces_is_answered(raw in soup()) {
            parse_any(&raw);
            parse_any(&format!("$filter={raw}"));
        }
    }

    #[test]
    fn the_longest_filters_are_answered_quickly() {
        let long = |piece: &str| piece.repeat(FILTER_BYTES_MAX / piece.len());
        for piece in [
            "(",
            "not ",
            "not(",
            "size eq 1 or ",
            "''",
            "'",
            " ",
            "x",
            "name eq 'a' and (",
            "tags/any(t:",
            "1,",
        ] {
            parse_any(&format!("$filter={}", long(piece)));
            parse_any(&format!("$filter=size in ({}", long(piece)));
            parse_any(&format!("$filter=name eq '{}", long(piece)));
        }
        parse_any(&format!("$filter={}size eq 1", "(".repeat(FILTER_DEPTH_MAX)));
        for option in ["$orderby", "$select", "$skiptoken", "$top"] {
            parse_any(&format!("{option}={}", ",".repeat(QUERY_BYTES_MAX - 20)));
        }
        parse_any(&"%61".repeat(QUERY_BYTES_MAX / 3));
        parse_any(&"&".repeat(QUERY_BYTES_MAX));
    }
}
