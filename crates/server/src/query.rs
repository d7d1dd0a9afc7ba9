//! What a request asks of a list, and how the answer is wrapped: query options in; contexts, links and pages out.
//!
//! The options' grammar is `odata`'s and the rows are the store's; this file connects both to HTTP.

use std::convert::Infallible;

use api_types::odata::{Collection, Entity};
use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use domain::time::Timestamp;
use odata::{Query, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use store::list::Page;

use crate::error::ApiError;
use crate::state::AppState;

/// The query options of a request for a list.
pub(crate) fn parse(uri: &Uri, schema: &'static Schema) -> Result<Query, ApiError> {
    Ok(odata::parse(uri.query().unwrap_or_default(), schema)?)
}

/// The query options of a request for a number of rows: its filter, and a page without rows beside the count.
pub(crate) fn parse_count(uri: &Uri, schema: &'static Schema) -> Result<Query, ApiError> {
    Ok(Query { filter: parse(uri, schema)?.filter, top: Some(0), count: true, ..Query::default() })
}

/// The query that a bare filter asks for, as a body holds one.
pub(crate) fn filter(text: &str, schema: &'static Schema) -> Result<Query, ApiError> {
    let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("$filter", text).finish();
    Ok(odata::parse(&query, schema)?)
}

/// A point in time, in the forms of `$filter`.
pub(crate) fn date_time(name: &str, text: &str) -> Result<Timestamp, ApiError> {
    odata::parse_date_time(text).map(Timestamp::from_ticks).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        ApiError::invalid_input(format!("{name}: {shown:?} is no date-time such as 2026-01-31T08:00:00Z"))
    })
}

/// The reply to a request for a number of rows: a bare integer.
pub(crate) fn count<T>(page: &Page<T>) -> Result<Json<u64>, ApiError> {
    page.count.map(Json).ok_or_else(|| ApiError::fault("the store did not count"))
}

/// The URL that links in replies start with: under the name that the client used, when the deployment is known by that
/// name (it is an audience), else under the configured one. What a client merely claims is never repeated.
pub(crate) struct Base(String);

impl FromRequestParts<AppState> for Base {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let by_header = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = parts.uri.authority().map(|authority| authority.as_str()).or_else(by_header);
        let url = host.map(|host| format!("https://{host}")).filter(|url| state.issuer.accepts(url));
        Ok(Self(url.unwrap_or_else(|| state.config.public_url.clone())))
    }
}

impl Base {
    /// One entity of a set, in its context.
    pub(crate) fn entity<T: Serialize>(&self, set: &str, entity: T) -> Json<Entity<T>> {
        Json(Entity { context: format!("{}/$entity", self.context(set)), entity })
    }

    /// A page of a set, with a link to the next one, which carries the whole query.
    pub(crate) fn page<T, E: Serialize>(
        &self,
        set: &str,
        uri: &Uri,
        query: &Query,
        page: Page<T>,
        entity: impl Fn(T) -> E,
    ) -> Response {
        let next_link = page.next.map(|token| {
            let next = Query { skip: None, skip_token: Some(token), ..query.clone() };
            format!("{}{}?{next}", self.0, uri.path())
        });
        let (context, count) = (Some(self.context(set)), page.count);
        let entities = page.rows.into_iter().map(entity);
        match &query.select {
            None => Json(Collection { context, count, value: entities.collect(), next_link }).into_response(),
            Some(fields) => {
                let value = entities.map(|entity| selected(&entity, fields)).collect();
                Json(Collection { context, count, value, next_link }).into_response()
            }
        }
    }

    /// A page of a list that is read backward by number. A full page has a link to the next, which carries the rest of
    /// the query.
    pub(crate) fn page_before<T>(
        &self,
        uri: &Uri,
        top: u32,
        value: Vec<T>,
        id: impl Fn(&T) -> i64,
    ) -> Json<Collection<T>> {
        let full = value.len() == usize::try_from(top).unwrap_or(usize::MAX);
        let next_link = value.last().filter(|_| full).map(|last| {
            let given = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(given.filter(|(name, _)| name != "before"));
            query.append_pair("before", &id(last).to_string());
            format!("{}{}?{}", self.0, uri.path(), query.finish())
        });
        Json(Collection { context: None, count: None, value, next_link })
    }

    fn context(&self, set: &str) -> String {
        format!("{}/api/$metadata#{set}", self.0)
    }
}

/// A list that is not paged.
pub(crate) fn whole<T: Serialize>(value: Vec<T>) -> Json<Collection<T>> {
    Json(Collection { context: None, count: None, value, next_link: None })
}

/// The fields of an entity that were asked for.
fn selected(entity: &impl Serialize, fields: &[&'static str]) -> Map<String, Value> {
    let Ok(Value::Object(mut object)) = serde_json::to_value(entity) else { return Map::new() };
    object.retain(|field, _| fields.contains(&field.as_str()));
    object
}

/// The most entries of a page that is read backward by number.
const TOP_MAX: u32 = 1000;

/// How many entries a page has that is read backward by number.
pub(crate) fn top_default() -> u32 {
    100
}

/// The parameters of a request whose route has its own: unknown ones are refused.
pub(crate) fn parameters<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    let axum::extract::Query(parameters) = axum::extract::Query::<T>::try_from_uri(uri)
        .map_err(|rejection| ApiError::invalid_input(rejection.body_text()))?;
    Ok(parameters)
}

/// Checks how many entries a page is to have.
pub(crate) fn checked_top(top: u32) -> Result<u32, ApiError> {
    if (1..=TOP_MAX).contains(&top) {
        Ok(top)
    } else {
        Err(ApiError::invalid_input(format!("top is not between 1 and {TOP_MAX}")))
    }
}

/// The points in time between which entries are asked for.
pub(crate) fn between(
    since: Option<&String>,
    until: Option<&String>,
) -> Result<(Option<Timestamp>, Option<Timestamp>), ApiError> {
    Ok((
        since.map(|text| date_time("since", text)).transpose()?,
        until.map(|text| date_time("until", text)).transpose()?,
    ))
}
