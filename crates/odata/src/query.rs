//! The typed form of a query, and how it is printed.

use std::fmt::{self, Display, Formatter, Write as _};

use crate::date_time;
use crate::schema::Property;

/// What a request asks of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Which rows; none: all.
    pub filter: Option<Filter>,
    /// In which order, no property twice; empty: the entity's own order.
    pub order_by: Vec<OrderBy>,
    /// At most how many rows.
    pub top: Option<u32>,
    /// How many rows to leave out first.
    pub skip: Option<u32>,
    /// Which fields, spelled as the entity spells them; none: all.
    pub select: Option<Vec<&'static str>>,
    /// Whether to say how many rows match in all.
    pub count: bool,
    /// Where the page before this one ended; opaque here.
    pub skip_token: Option<String>,
}

/// A condition on a row. A test of a null is false, but for `eq null`, `ne` with a value, and `in` with null listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// All hold; at least two.
    And(Vec<Self>),
    /// One holds; at least two.
    Or(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// A test of one value.
    Test(Subject, Test),
    /// One element of the collection meets the condition, whose every subject is [`Subject::Element`]; without a
    /// condition: there is one.
    Any(&'static Property, Option<Box<Self>>),
}

/// What a test looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A property of the row.
    Property(&'static Property),
    /// The element of the collection that [`Filter::Any`] looks into: text.
    Element,
}

/// A test of one value. The values have the subject's type, or are null where that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Against a value.
    Compare(Comparison, Value),
    /// Equal to one of these; at least one.
    In(Vec<Value>),
    /// Looks into text.
    Text(TextFunction, String),
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `eq`
    Equal,
    /// `ne`
    NotEqual,
    /// `gt`
    Greater,
    /// `ge`
    GreaterOrEqual,
    /// `lt`
    Less,
    /// `le`
    LessOrEqual,
}

/// What is looked for in text. Case counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFunction {
    /// `startswith`
    StartsWith,
    /// `endswith`
    EndsWith,
    /// `contains`
    Contains,
}

/// A literal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// No value.
    Null,
    /// Text, without NUL.
    String(String),
    /// A whole number.
    Integer(i64),
    /// `true` or `false`.
    Boolean(bool),
    /// Ticks of 100 ns since 1970-01-01T00:00:00Z; what was written finer is cut off.
    DateTime(i64),
    /// The GUID's 128 bits.
    Guid(u128),
    /// One of the names of the property's type, spelled as there.
    Enum(&'static str),
}

/// One property to sort by. Null comes before every value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderBy {
    /// The property.
    pub property: &'static Property,
    /// Which end comes first.
    pub direction: Direction,
}

/// Which end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `asc`
    Ascending,
    /// `desc`
    Descending,
}

impl Comparison {
    /// Every comparison.
    pub const ALL: [Self; 6] =
        [Self::Equal, Self::NotEqual, Self::Greater, Self::GreaterOrEqual, Self::Less, Self::LessOrEqual];

    /// The operator.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "eq",
            Self::NotEqual => "ne",
            Self::Greater => "gt",
            Self::GreaterOrEqual => "ge",
            Self::Less => "lt",
            Self::LessOrEqual => "le",
        }
    }

    /// Whether it asks for sameness only, which every value has.
    pub(crate) fn is_equality(self) -> bool {
        match self {
            Self::Equal | Self::NotEqual => true,
            Self::Greater | Self::GreaterOrEqual | Self::Less | Self::LessOrEqual => false,
        }
    }
}

impl TextFunction {
    /// Every function.
    pub const ALL: [Self; 3] = [Self::StartsWith, Self::EndsWith, Self::Contains];

    /// The function's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::StartsWith => "startswith",
            Self::EndsWith => "endswith",
            Self::Contains => "contains",
        }
    }
}

impl Display for Query {
    /// A query string, percent-encoded.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let order_by: Vec<String> = self.order_by.iter().map(OrderBy::to_string).collect();
        let options = [
            ("$filter", self.filter.as_ref().map(Filter::to_string)),
            ("$orderby", (!order_by.is_empty()).then(|| order_by.join(","))),
            ("$top", self.top.map(|top| top.to_string())),
            ("$skip", self.skip.map(|skip| skip.to_string())),
            ("$select", self.select.as_ref().map(|fields| fields.join(","))),
            ("$count", self.count.then(|| "true".to_owned())),
            ("$skiptoken", self.skip_token.clone()),
        ];
        let mut separator = "";
        for (name, value) in options.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            write!(f, "{separator}{name}=")?;
            encode(value, f)?;
            separator = "&";
        }
        Ok(())
    }
}

fn encode(text: &str, f: &mut Formatter<'_>) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~'(),:/*".contains(&byte) {
            f.write_char(char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl Display for OrderBy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Ascending => "asc",
            Direction::Descending => "desc",
        };
        write!(f, "{} {direction}", self.property.name)
    }
}

impl Display for Filter {
    /// The text of a `$filter`, not percent-encoded.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(parts) => join(parts, AND, f),
            Self::Or(parts) => join(parts, OR, f),
            Self::Not(inner) => match **inner {
                Self::And(_) | Self::Or(_) => write!(f, "not ({inner})"),
                Self::Not(_) | Self::Test(..) | Self::Any(..) => write!(f, "not {inner}"),
            },
            Self::Test(subject, test) => match test {
                Test::Compare(comparison, value) => write!(f, "{subject} {} {value}", comparison.name()),
                Test::In(values) => {
                    let values: Vec<String> = values.iter().map(Value::to_string).collect();
                    write!(f, "{subject} in ({})", values.join(","))
                }
                Test::Text(function, text) => write!(f, "{}({subject},{})", function.name(), Quoted(text)),
            },
            Self::Any(collection, None) => write!(f, "{}/any()", collection.name),
            Self::Any(collection, Some(inner)) => write!(f, "{}/any({ELEMENT}: {inner})", collection.name),
        }
    }
}

/// The name that an element has in print.
const ELEMENT: &str = "t";
const AND: &str = " and ";
const OR: &str = " or ";

/// Parts in parentheses where they would be read otherwise, and nowhere else: printing nests no deeper than what was
/// read.
fn join(parts: &[Filter], operator: &str, f: &mut Formatter<'_>) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            f.write_str(operator)?;
        }
        match part {
            Filter::And(_) if operator == OR => part.fmt(f)?,
            Filter::And(_) | Filter::Or(_) => write!(f, "({part})")?,
            Filter::Not(_) | Filter::Test(..) | Filter::Any(..) => part.fmt(f)?,
        }
    }
    Ok(())
}

impl Display for Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Property(property) => property.name,
            Self::Element => ELEMENT,
        })
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::String(text) => Quoted(text).fmt(f),
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(value) => value.fmt(f),
            Self::DateTime(ticks) => date_time::print(*ticks, f),
            Self::Guid(bits) => {
                let digits = format!("{bits:032x}");
                for (index, digit) in digits.chars().enumerate() {
                    if matches!(index, 8 | 12 | 16 | 20) {
                        f.write_char('-')?;
                    }
                    f.write_char(digit)?;
                }
                Ok(())
            }
            Self::Enum(name) => Quoted(name).fmt(f),
        }
    }
}

/// Text as a literal.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0.replace('\'', "''"))
    }
}
