//! The commands: one file a noun, as in every other layer.

pub(crate) mod action;
pub(crate) mod app;
pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod bulk;
pub(crate) mod enrollment_token;
pub(crate) mod event;
pub(crate) mod login;
pub(crate) mod machine;
pub(crate) mod machine_group;
pub(crate) mod manifest;
pub(crate) mod policy;
pub(crate) mod preview;
pub(crate) mod role;
pub(crate) mod settings;
pub(crate) mod user;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

/// Options of the lists that understand OData.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only rows that match, such as "status eq 'Pending'" (OData $filter)
    #[arg(long, value_name = "EXPRESSION", value_parser = NonEmptyStringValueParser::new())]
    filter: Option<String>,
    /// At most this many rows [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    top: Option<u32>,
    /// In this order, such as "lastSeen desc" (OData $orderby)
    #[arg(long, value_name = "PROPERTIES", value_parser = NonEmptyStringValueParser::new())]
    orderby: Option<String>,
}

impl ListArguments {
    /// The query options of the request.
    fn query(&self) -> Vec<(&'static str, String)> {
        options([
            ("$filter", self.filter.clone()),
            ("$top", self.top.map(|top| top.to_string())),
            ("$orderby", self.orderby.clone()),
        ])
    }
}

/// The query options that have a value.
fn options<const N: usize>(options: [(&'static str, Option<String>); N]) -> Vec<(&'static str, String)> {
    options.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// The path of one thing of a collection, or of what belongs to it.
fn below<'a>(collection: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
    [collection, rest].concat()
}

/// Options of the lists that keep the newest of many.
#[derive(Debug, Args)]
pub(crate) struct HistoryArguments {
    /// The newest N
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    top: u32,
}
