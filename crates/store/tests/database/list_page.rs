//! Pages of long lists, while rows arrive and change.

use std::collections::HashSet;

use domain::machine_action::{MachineAction, MachineActionId, Phase};
use domain::machine_group::MachineAccess;
use odata::{Query, TOP_MAX};
use store::StoreError;
use store::list::{MACHINE_ACTIONS, MACHINES, Page, machine_action_list, machine_list};
use store::machine_action::{machine_action_create, machine_action_move};

use crate::fixture::{Database, action, enroll, machine_id, second};

/// Two pages and a half.
const ROWS: u64 = 25_000;

/// A database with many actions, many of which tie in what they are ordered by.
async fn many_actions() -> (Database, Vec<MachineActionId>) {
    let database = Database::new();
    let ids = database
        .write(|tx| {
            enroll(tx, 1)?;
            let actions = (1..=ROWS).map(|generation| MachineAction {
                phase: Phase::Enforced,
                // Seven of each time.
                created_at: second(i64::try_from(generation / 7).unwrap()),
                requestor: format!("requestor {}", generation % 3),
                external_id: (generation % 2 == 0).then(|| format!("it's {}", generation % 11)),
                ..action(machine_id(1), generation)
            });
            actions.map(|action| machine_action_create(tx, &action, "order").map(|()| action.id)).collect()
        })
        .await;
    (database, ids)
}

async fn page(database: &Database, query: &str) -> Result<Page<MachineAction>, StoreError> {
    let query = odata::parse(query, &MACHINE_ACTIONS).unwrap();
    database.store.read(move |tx| machine_action_list(tx, &query, &MachineAccess::All)).await
}

/// Follows the pages of a query to the end; `between` runs between them.
async fn all_pages(
    database: &Database,
    query: &str,
    mut between: impl AsyncFnMut(usize),
) -> Vec<Page<MachineAction>> {
    let mut pages = vec![page(database, query).await.unwrap()];
    while let Some(token) = pages.last().unwrap().next.clone() {
        between(pages.len()).await;
        let next = Query { skip_token: Some(token), ..odata::parse(query, &MACHINE_ACTIONS).unwrap() };
        pages.push(page(database, &next.to_string()).await.unwrap());
    }
    pages
}

fn ids(pages: &[Page<MachineAction>]) -> Vec<MachineActionId> {
    pages.iter().flat_map(|page| page.rows.iter().map(|action| action.id)).collect()
}

#[tokio::test]
async fn no_row_is_there_twice_and_none_is_missed_while_rows_arrive_and_change() {
    let (database, existing) = many_actions().await;
    let store = database.store.clone();
    let pages = all_pages(&database, "$count=true", async move |round: usize| {
        // Newer ones, one that ties with the newest, and changes to rows on both sides of the cursor.
        store
            .write::<_, StoreError>(move |tx| {
                for number in 0..500 {
                    let generation = ROWS + 1 + 1000 * round as u64 + number;
                    let created_at = second(i64::try_from((ROWS + number) / 7).unwrap());
                    let arrived = MachineAction {
                        phase: Phase::Enforced,
                        created_at,
                        ..action(machine_id(1), generation)
                    };
                    machine_action_create(tx, &arrived, "order")?;
                }
                let open = action(machine_id(1), ROWS + 1 + 1000 * round as u64 + 500);
                machine_action_create(tx, &open, "order")?;
                machine_action_move(tx, &open, Phase::Cancelled, None, None, second(5))?;
                Ok(())
            })
            .await
            .unwrap();
    })
    .await;
    let sizes: Vec<_> = pages.iter().map(|page| page.rows.len()).collect();
    assert_eq!(sizes, [10_000, 10_000, 5_000]);
    assert_eq!(pages[0].count, Some(ROWS));
    let listed = ids(&pages);
    let distinct: HashSet<_> = listed.iter().copied().collect();
    assert_eq!(distinct.len(), listed.len(), "a row is there twice");
    assert_eq!(distinct, existing.into_iter().collect::<HashSet<_>>());
}

#[tokio::test]
async fn pages_continue_any_order() {
    let (database, existing) = many_actions().await;
    for query in [
        "$orderby=creationDateTimeUtc",
        "$orderby=externalId,creationDateTimeUtc desc",
        "$orderby=externalId desc,requestor",
        "$orderby=status,id desc",
        "$orderby=type desc,requestor desc,externalId",
        "$filter=requestor ne 'requestor 9'&$orderby=requestor desc",
        "$filter=not (externalId eq 'x')&$skip=0&$select=id",
    ] {
        let pages = all_pages(&database, query, async |_| ()).await;
        let listed = ids(&pages);
        assert_eq!(listed.len(), existing.len(), "{query}");
        assert_eq!(listed.iter().collect::<HashSet<_>>().len(), existing.len(), "{query}");
        // The pages in a row are what one page of that length would be.
        let order = |pages: &[Page<MachineAction>]| {
            pages
                .iter()
                .flat_map(|page| &page.rows)
                .map(|row| (row.external_id.clone(), row.requestor.clone()))
                .collect::<Vec<_>>()
        };
        let ordered = order(&pages);
        let mut tops = Vec::new();
        for skip in [0, 9_000, 18_000] {
            let query = format!("{}&$top=9000&$skip={skip}", query.replace("&$skip=0", ""));
            tops.push(page(&database, &query).await.unwrap());
        }
        assert_eq!(order(&tops), ordered, "{query}");
        assert_eq!(ids(&tops), listed, "{query}");
    }
}

#[tokio::test]
async fn a_top_ends_the_list_and_a_skip_counts_once() {
    let (database, _) = many_actions().await;
    let top = page(&database, "$top=10000").await.unwrap();
    assert_eq!((top.rows.len(), top.next), (TOP_MAX as usize, None));
    let none = page(&database, "$top=0&$count=true").await.unwrap();
    assert_eq!((none.rows.len(), none.count, none.next), (0, Some(ROWS), None));
    let behind = page(&database, "$skip=25000").await.unwrap();
    assert_eq!((behind.rows.len(), behind.next), (0, None));
    let pages = all_pages(&database, "$skip=4000", async |_| ()).await;
    assert_eq!(ids(&pages).len(), 21_000);
    // A last page that is just full has nothing behind it.
    let pages = all_pages(&database, "$skip=5000", async |_| ()).await;
    assert_eq!(pages.iter().map(|page| page.rows.len()).collect::<Vec<_>>(), [10_000, 10_000]);
    let all = ids(&all_pages(&database, "", async |_| ()).await);
    assert_eq!(ids(&pages), all[5000..]);
}

#[tokio::test]
async fn machines_are_paged_by_id() {
    let database = Database::new();
    database.write(|tx| (0..10_001).try_for_each(|number| enroll(tx, number).map(drop))).await;
    let first = database.read(|tx| machine_list(tx, &Query::default(), &MachineAccess::All, second(1))).await;
    assert_eq!(first.rows.len(), 10_000);
    let query = Query { skip_token: first.next, ..Query::default() };
    let last = database.read(move |tx| machine_list(tx, &query, &MachineAccess::All, second(1))).await;
    assert_eq!(last.rows.iter().map(|machine| machine.id).collect::<Vec<_>>(), [machine_id(10_000)]);
    assert_eq!(last.next, None);
}

#[tokio::test]
async fn a_token_that_is_not_of_this_order_is_refused() {
    let (database, _) = many_actions().await;
    let token = page(&database, "").await.unwrap().next.unwrap();
    page(&database, &format!("$skiptoken={token}")).await.unwrap();
    // The same order, said aloud.
    page(&database, &format!("$orderby=creationDateTimeUtc desc&$skiptoken={token}")).await.unwrap();
    let flipped = |at: usize| {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
        String::from_utf8(changed).unwrap()
    };
    let mut bad = vec![
        "$skiptoken=".to_owned(),
        "$skiptoken=00".to_owned(),
        "$skiptoken=nonsense".to_owned(),
        format!("$skiptoken={token}00"),
        format!("$skiptoken={}", token.get(2..).unwrap()),
        format!("$orderby=creationDateTimeUtc&$skiptoken={token}"),
        format!("$orderby=lastUpdateDateTimeUtc desc&$skiptoken={token}"),
        format!("$orderby=creationDateTimeUtc desc,requestor&$skiptoken={token}"),
    ];
    bad.extend((0..token.len()).map(|at| format!("$skiptoken={}", flipped(at))));
    for query in bad {
        match page(&database, &query).await {
            Err(StoreError::Query(error)) => assert_eq!(error.option, "$skiptoken"),
            other => panic!("{query}: {:?}", other.map(|page| page.rows.len())),
        }
    }
    let query = odata::parse(&format!("$skiptoken={token}"), &MACHINES).unwrap();
    let refused =
        database.store.read(move |tx| machine_list(tx, &query, &MachineAccess::All, second(1))).await;
    assert!(matches!(refused, Err(StoreError::Query(_))));
}
