//! Roles.

use domain::permission::{Right, Rights};
use domain::role::{ADMINISTRATOR, Role};
use store::role::{role_delete, role_list, role_save};

use crate::fixture::Database;

#[tokio::test]
async fn a_role_is_kept_as_it_was_saved_last() {
    let database = Database::new();
    let built_in = database.read(role_list).await;
    assert_eq!((built_in.len(), built_in[0].name.as_str()), (1, ADMINISTRATOR));
    assert_eq!((built_in[0].rights, built_in[0].bulk_machines_max), (Rights::all(), None));
    assert_eq!(built_in[0].user_groups, [""; 0]);

    let responder = Role {
        name: "Responder".to_owned(),
        description: "contains".to_owned(),
        rights: [Right::ViewData, Right::ActiveRemediationActions].into_iter().collect(),
        user_groups: vec!["soc".to_owned(), "soc-2".to_owned()],
        bulk_machines_max: Some(500),
    };
    let reader = Role {
        name: "Analyst".to_owned(),
        rights: Rights::default(),
        user_groups: vec!["soc".to_owned()],
        bulk_machines_max: None,
        ..responder.clone()
    };
    for saved in [responder.clone(), reader.clone()] {
        database.write(move |tx| role_save(tx, &saved)).await;
    }
    let database = database.reopened();
    let administrator = built_in[0].clone();
    let expected = [administrator.clone(), reader.clone(), responder.clone()];
    assert_eq!(database.read(role_list).await, expected);

    let changed = Role {
        description: String::new(),
        user_groups: vec!["soc-3".to_owned()],
        bulk_machines_max: None,
        rights: [Right::BulkRemediation].into_iter().collect(),
        ..responder
    };
    let saved = Role { user_groups: [&changed.user_groups[..]; 2].concat(), ..changed.clone() };
    database.write(move |tx| role_save(tx, &saved)).await;
    assert_eq!(database.read(role_list).await, [administrator.clone(), reader, changed.clone()]);
    for there in [true, false] {
        assert_eq!(database.write(|tx| role_delete(tx, "Analyst")).await, there);
    }
    assert_eq!(database.read(role_list).await, [administrator, changed]);
}
