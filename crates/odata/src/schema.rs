//! What an entity offers to queries: the names and types of its properties.

/// The properties of one entity.
#[derive(Debug)]
pub struct Schema {
    /// Every field of the entity, as `$select` may name it.
    pub fields: &'static [&'static str],
    /// What `$filter` and `$orderby` may name. A part of a field is named by a path, such as `restriction/since`.
    pub properties: &'static [Property],
}

/// A property that can be compared. Names match without regard to case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Property {
    /// Its name, spelled as the entity spells it.
    pub name: &'static str,
    /// What its values are, besides null.
    pub kind: Type,
}

/// What the values of a property are, and with it how they are written and which tests they can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Text, in quotes. The only type that `startswith`, `endswith` and `contains` look into.
    String,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A point in time, without quotes.
    DateTime,
    /// A GUID, with quotes or without.
    Guid,
    /// One of these names, in quotes, in the order in which they sort.
    Enum(&'static [&'static str]),
    /// A collection of text: `any( )` looks into it, and nothing sorts by it.
    Strings,
}

impl Schema {
    /// The property with this name.
    pub(crate) fn property(&'static self, name: &str) -> Option<&'static Property> {
        self.properties.iter().find(|property| property.name.eq_ignore_ascii_case(name))
    }

    /// The field with this name, as the entity spells it.
    pub(crate) fn field(&self, name: &str) -> Option<&'static str> {
        self.fields.iter().copied().find(|field| field.eq_ignore_ascii_case(name))
    }

    /// The names of the properties that pass, for saying what was expected.
    pub(crate) fn names(&self, passes: impl Fn(Type) -> bool) -> String {
        let names: Vec<_> = self
            .properties
            .iter()
            .filter(|property| passes(property.kind))
            .map(|property| property.name)
            .collect();
        names.join(", ")
    }
}

impl Type {
    /// Whether values can be before and after each other.
    pub(crate) fn has_order(self) -> bool {
        match self {
            Self::String | Self::Integer | Self::DateTime => true,
            Self::Boolean | Self::Guid | Self::Enum(_) | Self::Strings => false,
        }
    }
}
