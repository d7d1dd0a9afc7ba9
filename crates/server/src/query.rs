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
use odata::{Query, Schema};
use serde::{Deserialize, Serialize};
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

    /// A page of a list that is read backward by number. A full page has a link to the next.
    pub(crate) fn page_before<T>(
        &self,
        uri: &Uri,
        before: &Before,
        value: Vec<T>,
        id: impl Fn(&T) -> i64,
    ) -> Json<Collection<T>> {
        let full = value.len() == usize::try_from(before.top).unwrap_or(usize::MAX);
        let next_link = value.last().filter(|_| full).map(|last| {
            let mut query = form_urlencoded::Serializer::new(String::new());
            if let Some(machine) = &before.machine_id {
                query.append_pair("machineId", machine);
            }
            query.append_pair("top", &before.top.to_string());
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

/// Which part of a list that is read backward by number: `?top=&before=`, and `machineId=` where it means something.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Before {
    /// How many at most.
    #[serde(default = "top_default")]
    pub(crate) top: u32,
    /// Only those with a lower number.
    pub(crate) before: Option<i64>,
    /// Only those of this machine, by id or name.
    pub(crate) machine_id: Option<String>,
}

/// The most entries of a page that is read backward.
const TOP_MAX: u32 = 1000;

fn top_default() -> u32 {
    100
}

impl Before {
    /// The part that a request asks for.
    pub(crate) fn read(uri: &Uri) -> Result<Self, ApiError> {
        let axum::extract::Query(before) = axum::extract::Query::<Self>::try_from_uri(uri)
            .map_err(|rejection| ApiError::invalid_input(rejection.body_text()))?;
        if !(1..=TOP_MAX).contains(&before.top) {
            return Err(ApiError::invalid_input(format!("top is not between 1 and {TOP_MAX}")));
        }
        Ok(before)
    }
}
