//! The grammar of `$filter`.
//!
//! ```text
//! or        = and *( "or" and )
//! and       = unary *( "and" unary )
//! unary     = "not" unary | "(" or ")" | test
//! test      = function "(" subject "," string ")" | collection "/any(" [ variable ":" or ] ")"
//!           | subject comparison literal | subject "in" "(" literal *( "," literal ) ")"
//! subject   = property | variable
//! ```
//!
//! One word decides each choice, so nothing is read twice and time grows with length only. Keywords match without
//! regard to case, and spaces are needed only between words.

use std::borrow::Cow;

use winnow::Parser;
use winnow::ascii::multispace0;
use winnow::combinator::{alt, delimited, opt, preceded, repeat};
use winnow::error::ParserError;
use winnow::stream::{LocatingSlice, Location as _, Stateful, Stream as _};
use winnow::token::take_while;

use crate::query::{Comparison, Filter, Subject, Test, TextFunction, Value};
use crate::schema::{Property, Schema, Type};
use crate::{Error, FILTER_DEPTH_MAX, FILTER_NODES_MAX, date_time};

type Input<'a> = Stateful<LocatingSlice<&'a str>, State<'a>>;

/// What is known while reading.
#[derive(Debug, Clone)]
struct State<'a> {
    schema: &'static Schema,
    /// The variable of the `any( )` that is being read.
    variable: Option<&'a str>,
    nodes_left: usize,
    depth_left: usize,
}

/// Where reading failed, and what would have been right there.
struct Failure {
    at: usize,
    expected: Cow<'static, str>,
}

impl ParserError<Input<'_>> for Failure {
    type Inner = Self;

    fn from_input(input: &Input<'_>) -> Self {
        Self { at: input.current_token_start(), expected: Cow::Borrowed("something else") }
    }

    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

type Read<T> = Result<T, Failure>;

/// Reads the decoded value of a `$filter`.
pub(crate) fn parse(text: &str, schema: &'static Schema) -> Result<Filter, Error> {
    let state = State { schema, variable: None, nodes_left: FILTER_NODES_MAX, depth_left: FILTER_DEPTH_MAX };
    let mut input = Stateful { input: LocatingSlice::new(text), state };
    let read = any_of(&mut input).and_then(|filter| {
        spaces(&mut input);
        if input.is_empty() { Ok(filter) } else { fail(&input, "and, or, or the end") }
    });
    read.map_err(|failure| Error::at("$filter", text, failure.at, failure.expected))
}

fn any_of(input: &mut Input<'_>) -> Read<Filter> {
    let mut parts = vec![all_of(input)?];
    while keyword(input, "or") {
        parts.push(all_of(input)?);
    }
    group(input, parts, Filter::Or)
}

fn all_of(input: &mut Input<'_>) -> Read<Filter> {
    let mut parts = vec![unary(input)?];
    while keyword(input, "and") {
        parts.push(unary(input)?);
    }
    group(input, parts, Filter::And)
}

fn group(input: &mut Input<'_>, mut parts: Vec<Filter>, of: fn(Vec<Filter>) -> Filter) -> Read<Filter> {
    match (parts.pop(), parts.is_empty()) {
        (Some(only), true) => Ok(only),
        (last, _) => {
            parts.extend(last);
            spend_node(input)?;
            Ok(of(parts))
        }
    }
}

fn unary(input: &mut Input<'_>) -> Read<Filter> {
    spaces(input);
    if keyword(input, "not") {
        spend_node(input)?;
        return deeper(input, unary).map(|inner| Filter::Not(Box::new(inner)));
    }
    if symbol(input, "(") {
        let inner = deeper(input, any_of)?;
        require(input, ")", "and, or, or )")?;
        return Ok(inner);
    }
    test(input)
}

fn test(input: &mut Input<'_>) -> Read<Filter> {
    spend_node(input)?;
    let start = input.checkpoint();
    let name = word(input);
    let function = TextFunction::ALL.into_iter().find(|function| function.name().eq_ignore_ascii_case(name));
    if let Some(function) = function {
        return text_test(input, function);
    }
    if let Some((collection, any)) = name.rsplit_once('/')
        && any.eq_ignore_ascii_case("any")
    {
        return any_test(input, &start, collection);
    }
    let (subject, kind) = subject(input, &start, name)?;
    spaces(input);
    let start = input.checkpoint();
    let operator = word(input);
    if operator.eq_ignore_ascii_case("in") {
        return list_of(input, kind).map(|values| Filter::Test(subject, Test::In(values)));
    }
    let comparison = Comparison::ALL.into_iter().find(|comparison| {
        comparison.name().eq_ignore_ascii_case(operator) && (kind.has_order() || comparison.is_equality())
    });
    let Some(comparison) = comparison else {
        input.reset(&start);
        return fail(input, if kind.has_order() { "eq, ne, gt, ge, lt, le or in" } else { "eq, ne or in" });
    };
    spaces(input);
    let value = literal(input, kind, comparison.is_equality())?;
    Ok(Filter::Test(subject, Test::Compare(comparison, value)))
}

/// What follows `startswith`, `endswith` or `contains`.
fn text_test(input: &mut Input<'_>, function: TextFunction) -> Read<Filter> {
    require(input, "(", "(")?;
    spaces(input);
    let start = input.checkpoint();
    let name = word(input);
    let (subject, kind) = subject(input, &start, name)?;
    if kind != Type::String {
        input.reset(&start);
        return fail(input, one_of(&input.state, |kind| kind == Type::String));
    }
    require(input, ",", "a comma")?;
    spaces(input);
    let text = quoted(input)?;
    require(input, ")", ")")?;
    Ok(Filter::Test(subject, Test::Text(function, text)))
}

/// What follows `collection/any`.
fn any_test<'a>(input: &mut Input<'a>, start: &Checkpoint<'a>, name: &str) -> Read<Filter> {
    let is_collection = |kind| kind == Type::Strings;
    let property = input.state.schema.property(name).filter(|property| is_collection(property.kind));
    let (Some(property), None) = (property, input.state.variable) else {
        input.reset(start);
        return fail(input, one_of(&input.state, |kind| !is_collection(kind)));
    };
    require(input, "(", "(")?;
    if symbol(input, ")") {
        return Ok(Filter::Any(property, None));
    }
    spaces(input);
    let variable = word(input);
    if variable.is_empty() || variable.contains(['/', '.']) {
        return fail(input, "a variable and a colon, such as t:");
    }
    require(input, ":", "a colon")?;
    input.state.variable = Some(variable);
    let inner = deeper(input, any_of)?;
    input.state.variable = None;
    require(input, ")", "and, or, or )")?;
    Ok(Filter::Any(property, Some(Box::new(inner))))
}

/// The subject that was read as `name`, and its type.
fn subject<'a>(input: &mut Input<'a>, start: &Checkpoint<'a>, name: &str) -> Read<(Subject, Type)> {
    let found = match input.state.variable {
        Some(variable) => (variable == name).then_some((Subject::Element, Type::String)),
        None => {
            input.state.schema.property(name).map(|property| (Subject::Property(property), property.kind))
        }
    };
    match found {
        Some((Subject::Property(Property { name, kind: Type::Strings }), _)) => {
            input.reset(start);
            fail(input, format!("{name}/any(t: t eq '...')"))
        }
        Some(found) => Ok(found),
        None => {
            input.reset(start);
            fail(input, one_of(&input.state, |_| true))
        }
    }
}

/// The names that may stand for a subject.
fn one_of(state: &State<'_>, passes: impl Fn(Type) -> bool) -> String {
    match state.variable {
        Some(variable) => format!("the variable {variable}"),
        None => format!("one of {}", state.schema.names(passes)),
    }
}

/// What follows `in`.
fn list_of(input: &mut Input<'_>, kind: Type) -> Read<Vec<Value>> {
    require(input, "(", "(")?;
    let mut values = Vec::new();
    loop {
        spend_node(input)?;
        spaces(input);
        values.push(literal(input, kind, true)?);
        if !symbol(input, ",") {
            break;
        }
    }
    require(input, ")", "a comma or )")?;
    Ok(values)
}

fn literal(input: &mut Input<'_>, kind: Type, may_be_null: bool) -> Read<Value> {
    if may_be_null && keyword(input, "null") {
        return Ok(Value::Null);
    }
    let start = input.checkpoint();
    let read = match kind {
        Type::String | Type::Strings => return quoted(input).map(Value::String),
        Type::Enum(names) => {
            let text = quoted(input).ok();
            text.and_then(|text| names.iter().copied().find(|name| name.eq_ignore_ascii_case(&text)))
                .map(Value::Enum)
        }
        Type::Guid => {
            let text =
                if peek(input) == Some('\'') { quoted(input).ok() } else { Some(bare(input).to_owned()) };
            text.as_deref().and_then(guid).map(Value::Guid)
        }
        Type::Integer => bare(input).parse().ok().map(Value::Integer),
        Type::Boolean => match bare(input) {
            word if word.eq_ignore_ascii_case("true") => Some(Value::Boolean(true)),
            word if word.eq_ignore_ascii_case("false") => Some(Value::Boolean(false)),
            _ => None,
        },
        Type::DateTime => {
            let mut rest = *input.input;
            let read = date_time::read(&mut rest).ok();
            let length = input.eof_offset() - rest.len();
            input.next_slice(length);
            read.filter(|_| bare(input).is_empty()).map(Value::DateTime)
        }
    };
    read.map_or_else(
        || {
            input.reset(&start);
            fail(input, expected_literal(kind))
        },
        Ok,
    )
}

fn expected_literal(kind: Type) -> Cow<'static, str> {
    match kind {
        Type::String | Type::Strings => "text in quotes".into(),
        Type::Integer => "a whole number".into(),
        Type::Boolean => "true or false".into(),
        Type::DateTime => "a date-time without quotes, such as 2026-01-31T00:00:00Z or 2026-01-31Z".into(),
        Type::Guid => "a GUID".into(),
        Type::Enum(names) => format!("one of '{}'", names.join("', '")).into(),
    }
}

/// Text in quotes; a quote in it is doubled.
fn quoted(input: &mut Input<'_>) -> Read<String> {
    let start = input.checkpoint();
    let piece = alt((take_while(1.., |c| c != '\''), "''".value("'")));
    let text = repeat(0.., piece).fold(String::new, |text: String, piece: &str| text + piece);
    let read: Read<String> = delimited('\'', text, '\'').parse_next(input);
    read.or_else(|_| {
        input.reset(&start);
        fail(input, "text in quotes")
    })
}

fn guid(text: &str) -> Option<u128> {
    let lengths = text.split('-').map(str::len);
    let digits = text.replace('-', "");
    let shaped = lengths.eq([8, 4, 4, 4, 12]) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    shaped.then(|| u128::from_str_radix(&digits, 16).ok()).flatten()
}

type Checkpoint<'a> = <Input<'a> as winnow::stream::Stream>::Checkpoint;

fn deeper<'a, T>(input: &mut Input<'a>, read: fn(&mut Input<'a>) -> Read<T>) -> Read<T> {
    let Some(left) = input.state.depth_left.checked_sub(1) else {
        return fail(input, format!("at most {FILTER_DEPTH_MAX} levels"));
    };
    input.state.depth_left = left;
    let inner = read(input);
    input.state.depth_left = left + 1;
    inner
}

fn spend_node(input: &mut Input<'_>) -> Read<()> {
    match input.state.nodes_left.checked_sub(1) {
        Some(left) => {
            input.state.nodes_left = left;
            Ok(())
        }
        None => fail(input, format!("at most {FILTER_NODES_MAX} conditions and values")),
    }
}

/// A run of characters that names are made of; empty when there is none.
fn word<'a>(input: &mut Input<'a>) -> &'a str {
    run(input, |c| c.is_ascii_alphanumeric() || "_/.".contains(c))
}

/// A run of characters that literals without quotes are made of; empty when there is none.
fn bare<'a>(input: &mut Input<'a>) -> &'a str {
    run(input, |c| c.is_ascii_alphanumeric() || "_.:+-".contains(c))
}

fn run<'a>(input: &mut Input<'a>, holds: impl Fn(char) -> bool) -> &'a str {
    let read: Read<&'a str> = take_while(0.., holds).parse_next(input);
    read.unwrap_or_default()
}

fn spaces(input: &mut Input<'_>) {
    let read: Read<&str> = multispace0.parse_next(input);
    drop(read);
}

fn peek(input: &Input<'_>) -> Option<char> {
    input.input.chars().next()
}

/// Reads this keyword, when it comes next.
fn keyword(input: &mut Input<'_>, keyword: &str) -> bool {
    let start = input.checkpoint();
    spaces(input);
    let found = word(input).eq_ignore_ascii_case(keyword);
    if !found {
        input.reset(&start);
    }
    found
}

/// Reads this symbol, when it comes next.
fn symbol(input: &mut Input<'_>, symbol: &'static str) -> bool {
    let read: Read<Option<&str>> = opt(preceded(multispace0, symbol)).parse_next(input);
    matches!(read, Ok(Some(_)))
}

fn require(input: &mut Input<'_>, wanted: &'static str, expected: &'static str) -> Read<()> {
    if symbol(input, wanted) { Ok(()) } else { fail(input, expected) }
}

fn fail<T>(input: &Input<'_>, expected: impl Into<Cow<'static, str>>) -> Read<T> {
    let spaces = input.input.len() - input.input.trim_start().len();
    Err(Failure { at: input.current_token_start() + spaces, expected: expected.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Property;

    static SCHEMA: Schema = Schema {
        fields: &[],
        properties: &[
            Property { name: "name", kind: Type::String },
            Property { name: "size", kind: Type::Integer },
            Property { name: "lastSeen", kind: Type::DateTime },
            Property { name: "id", kind: Type::Guid },
            Property { name: "status", kind: Type::Enum(&["Pending", "InProgress"]) },
            Property { name: "restriction/drift", kind: Type::Boolean },
            Property { name: "tags", kind: Type::Strings },
        ],
    };

    #[test]
    fn good_table() {
        for (text, printed) in [
            ("name eq 'a'", "name eq 'a'"),
            ("NAME EQ 'a'", "name eq 'a'"),
            ("  name  eq\t'a'  ", "name eq 'a'"),
            ("name eq'a'or(size gt 1)", "name eq 'a' or size gt 1"),
            ("name eq ''", "name eq ''"),
            ("name eq 'O''Brien'''", "name eq 'O''Brien'''"),
            ("name ge 'ü €'", "name ge 'ü €'"),
            ("name eq null", "name eq null"),
            ("name eq 'null'", "name eq 'null'"),
            ("size ne -9223372036854775808", "size ne -9223372036854775808"),
            ("size in (1,2 , null)", "size in (1,2,null)"),
            ("lastSeen gt 2026-01-31Z", "lastSeen gt 2026-01-31Z"),
            ("lastSeen le 2026-01-31T01:00:00.5+01:00", "lastSeen le 2026-01-31T00:00:00.5Z"),
            ("lastSeen le 2026-01-31T01:00 01:00 and size lt 3", "lastSeen le 2026-01-31Z and size lt 3"),
            ("id eq 00112233-4455-6677-8899-aAbBcCdDeEfF", "id eq 00112233-4455-6677-8899-aabbccddeeff"),
            (
                "id in ('00112233-4455-6677-8899-aabbccddeeff')",
                "id in (00112233-4455-6677-8899-aabbccddeeff)",
            ),
            ("status eq 'pending'", "status eq 'Pending'"),
            ("status in ('Pending', 'InProgress')", "status in ('Pending','InProgress')"),
            ("Restriction/Drift eq TRUE", "restriction/drift eq true"),
            ("startswith(name,'a') or EndsWith( name , 'b' )", "startswith(name,'a') or endswith(name,'b')"),
            ("contains(name,'%_')", "contains(name,'%_')"),
            ("tags/any()", "tags/any()"),
            ("tags/any(t: t eq 'x')", "tags/any(t: t eq 'x')"),
            (
                "tags/Any(tag:startswith(tag,'x') and not (tag in ('y')))",
                "tags/any(t: startswith(t,'x') and not t in ('y'))",
            ),
            ("not tags/any(t:t eq 'x') and size eq 1", "not tags/any(t: t eq 'x') and size eq 1"),
            ("size eq 1 or size eq 2 and size eq 3", "size eq 1 or size eq 2 and size eq 3"),
            ("(size eq 1 or size eq 2) and size eq 3", "(size eq 1 or size eq 2) and size eq 3"),
            ("size eq 1 and (size eq 2 and size eq 3)", "size eq 1 and (size eq 2 and size eq 3)"),
            ("size eq 1 or (size eq 2 and size eq 3)", "size eq 1 or size eq 2 and size eq 3"),
            ("not not(not(size eq 1))", "not not not size eq 1"),
            ("(((size eq 1)))", "size eq 1"),
        ] {
            let filter = parse(text, &SCHEMA).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.to_string(), printed, "{text}");
            assert_eq!(parse(printed, &SCHEMA).as_ref(), Ok(&filter), "{text}");
        }
    }

    #[test]
    fn bad_table() {
        for (text, position, expected, found) in [
            ("", 1, "one of name, size", "the end"),
            ("   ", 4, "one of name, size", "the end"),
            ("color eq 'x'", 1, "one of name, size", r#""color eq 'x'""#),
            ("name", 5, "eq, ne, gt, ge, lt, le or in", "the end"),
            ("name is 'x'", 6, "eq, ne, gt, ge, lt, le or in", r#""is 'x'""#),
            ("name eq", 8, "text in quotes", "the end"),
            ("name eq x", 9, "text in quotes", r#""x""#),
            ("name eq 'x", 9, "text in quotes", r#""'x""#),
            ("name eq 'x' y", 13, "and, or, or the end", r#""y""#),
            ("name eq 'x' and", 16, "one of name, size", "the end"),
            ("name eq 'x')", 12, "and, or, or the end", r#"")""#),
            ("(name eq 'x'", 13, "and, or, or )", "the end"),
            ("name gt null", 9, "text in quotes", r#""null""#),
            ("name in ()", 10, "text in quotes", r#"")""#),
            ("name in ('a' 'b')", 14, "a comma or )", r#""'b')""#),
            ("'x' eq name", 1, "one of name, size", r#""'x' eq name""#),
            ("size eq '1'", 9, "a whole number", r#""'1'""#),
            ("size eq 1.5", 9, "a whole number", r#""1.5""#),
            ("size eq 9223372036854775808", 9, "a whole number", r#""9223372036854775808""#),
            ("lastSeen gt '2026-01-31Z'", 13, "a date-time without quotes", r#""'2026-01-31Z'""#),
            ("lastSeen gt 2026-01-31", 13, "a date-time without quotes", r#""2026-01-31""#),
            ("lastSeen gt 2026-01-31Zulu", 13, "a date-time without quotes", r#""2026-01-31Zulu""#),
            ("id eq 0011", 7, "a GUID", r#""0011""#),
            ("id eq '00112233-4455-6677-8899-aabbccddeef+'", 7, "a GUID", r#""'00112233-4455-6677-8899"..."#),
            (
                "id gt 00112233-4455-6677-8899-aabbccddeeff",
                4,
                "eq, ne or in",
                r#""gt 00112233-4455-6677-88"..."#,
            ),
            ("status eq 'Done'", 11, "one of 'Pending', 'InProgress'", r#""'Done'""#),
            ("status eq Pending", 11, "one of 'Pending', 'InProgress'", r#""Pending""#),
            ("status gt 'Pending'", 8, "eq, ne or in", r#""gt 'Pending'""#),
            ("restriction/drift eq 1", 22, "true or false", r#""1""#),
            ("tags eq 'x'", 1, "tags/any(t: t eq '...')", r#""tags eq 'x'""#),
            ("tags/all(t: t eq 'x')", 1, "one of name, size", r#""tags/all(t: t eq 'x')""#),
            ("name/any(t: t eq 'x')", 1, "one of name, size", r#""name/any(t: t eq 'x')""#),
            ("tags/any(t: name eq 'x')", 13, "the variable t", r#""name eq 'x')""#),
            ("tags/any(t: tags/any(s: s eq 'x'))", 13, "the variable t", r#""tags/any(s: s eq 'x'))""#),
            ("tags/any(t eq 'x')", 12, "a colon", r#""eq 'x')""#),
            ("tags/any(: t eq 'x')", 10, "a variable and a colon", r#"": t eq 'x')""#),
            ("tags/any(t: t eq 'x'", 21, "and, or, or )", "the end"),
            ("t eq 'x'", 1, "one of name, size", r#""t eq 'x'""#),
            ("startswith(size,'1')", 12, "one of name", r#""size,'1')""#),
            ("startswith(name)", 16, "a comma", r#"")""#),
            ("startswith name", 12, "(", r#""name""#),
            ("startswith(name,'a') eq true", 22, "and, or, or the end", r#""eq true""#),
            ("ü eq 1", 1, "one of name, size", r#""ü eq 1""#),
            ("name eq 'üü' ö", 14, "and, or, or the end", r#""ö""#),
        ] {
            let error = parse(text, &SCHEMA).expect_err(text);
            assert_eq!((error.option.as_str(), error.position), ("$filter", position), "{text}: {error}");
            assert_eq!(error.found, found, "{text}: {error}");
            assert!(error.expected.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn depth_and_parts_have_limits() {
        let nested = |depth: usize| format!("{}size eq 1{}", "(".repeat(depth), ")".repeat(depth));
        assert!(parse(&nested(FILTER_DEPTH_MAX), &SCHEMA).is_ok());
        let error = parse(&nested(FILTER_DEPTH_MAX + 1), &SCHEMA).unwrap_err();
        assert_eq!((error.position, error.expected.as_str()), (FILTER_DEPTH_MAX + 2, "at most 32 levels"));
        assert!(parse(&"not ".repeat(100_000), &SCHEMA).unwrap_err().expected.ends_with("levels"));

        // Beside the values there is the test, beside the tests the group.
        let list = |values: usize| format!("size in ({})", vec!["1"; values].join(","));
        assert!(parse(&list(FILTER_NODES_MAX - 1), &SCHEMA).is_ok());
        assert!(parse(&list(FILTER_NODES_MAX), &SCHEMA).unwrap_err().expected.starts_with("at most 500"));
        let chain = |tests: usize| vec!["size eq 1"; tests].join(" or ");
        assert!(parse(&chain(FILTER_NODES_MAX - 1), &SCHEMA).is_ok());
        assert!(parse(&chain(FILTER_NODES_MAX), &SCHEMA).unwrap_err().expected.starts_with("at most 500"));
    }
}
