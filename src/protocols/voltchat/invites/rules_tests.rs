use super::*;

const NOW: UnixMs = 1_700_000_000_000;

fn shelf() -> Shelf {
    let plan = Shelf::default().put_server(&json!({"id": "srv_lab1", "name": "Lab"}));
    plan.unwrap().shelf
}

fn share(shelf: &Shelf, body: Value) -> Result<Plan<Arc<Invite>>, Refused> {
    let id = format!("sinv_{}", shelf.shared);
    let peer = |named: &str| {
        ["peer_b", "b.example"]
            .contains(&named)
            .then(|| "peer_b".to_owned())
    };
    shelf.share(&body, peer, id, NOW)
}

fn with(shelf: &Shelf, extra: Value) -> Shelf {
    let mut body = json!({"code": "ABC", "serverId": "srv_lab1"});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    share(shelf, body).unwrap().shelf
}

/// What the store would give back after these rows.
fn reread(steps: &[&[Record]]) -> Shelf {
    let mut rows: BTreeMap<(&str, String), String> = BTreeMap::new();
    for row in steps.iter().flat_map(|rows| rows.iter()) {
        match &row.value {
            Some(value) => rows.insert((row.kind, row.key.clone()), value.clone()),
            None => rows.remove(&(row.kind, row.key.clone())),
        };
    }
    let of = |kind: &str| {
        let rows = rows.iter().filter(|((k, _), _)| *k == kind);
        rows.map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    };
    let count = rows.get(&(COUNT, SHARED.to_owned())).map(String::as_str);
    Shelf::from_rows(of(INVITE), of(SERVER), count).unwrap()
}

#[test]
fn what_is_wrong_is_said_in_the_order_of_the_sheet() {
    let shelf = shelf();
    for (body, refused) in [
        (json!({"serverId": "srv_lab1"}), Refused::Incomplete),
        (json!({"code": " ", "serverId": "a b"}), Refused::Incomplete),
        (
            json!({"code": 5, "serverId": "srv_lab1"}),
            Refused::Incomplete,
        ),
        (json!([]), Refused::Incomplete),
        (json!({"code": "a b", "serverId": "a b"}), Refused::BadCode),
        (json!({"code": "A", "serverId": "a b"}), Refused::BadServer),
        (
            json!({"code": "A", "serverId": "nope", "targetPeerId": "a b"}),
            Refused::UnknownServer("nope".into()),
        ),
        (
            json!({"code": "A", "serverId": "srv_lab1", "targetPeerId": "a b", "maxUses": -1}),
            Refused::BadTarget,
        ),
        (
            json!({"code": "A", "serverId": "srv_lab1", "targetPeerId": "peer_c", "maxUses": -1}),
            Refused::UnknownTarget("peer_c".into()),
        ),
        (
            json!({"code": "A", "serverId": "srv_lab1", "maxUses": "", "expiresAt": "soon"}),
            Refused::BadMaxUses,
        ),
        (
            json!({"code": "A", "serverId": "srv_lab1", "maxUses": 1_000_001}),
            Refused::BadMaxUses,
        ),
        (
            json!({"code": "A", "serverId": "srv_lab1", "expiresAt": "soon"}),
            Refused::BadExpiry,
        ),
        (
            json!({"code": "A", "serverId": "srv_lab1", "expiresAt": "2020-01-01T00:00:00Z"}),
            Refused::PastExpiry,
        ),
    ] {
        assert_eq!(share(&shelf, body.clone()).unwrap_err(), refused, "{body}");
    }
}

#[test]
fn an_invite_is_shown_with_its_times_in_utc_and_its_absent_members_as_null() {
    let plan = share(
        &shelf(),
        json!({"code": " ABC123 ", "serverId": "srv_lab1", "serverName": " My Cool Server ",
               "maxUses": "1", "targetPeerId": null, "expiresAt": "2099-12-31T23:59:59+01:00"}),
    );
    assert_eq!(
        plan.unwrap().answer.shown("volt-a.example", "Volt A"),
        json!({"id": "sinv_0", "code": "ABC123", "serverId": "srv_lab1",
               "serverName": "My Cool Server", "sourceHost": "volt-a.example",
               "sourceMainline": "Volt A", "targetPeerId": null, "maxUses": 1, "uses": 0,
               "expiresAt": "2099-12-31T22:59:59.000Z", "createdAt": "2023-11-14T22:13:20.000Z"})
    );
    let bare = share(
        &shelf(),
        json!({"code": "A", "serverId": "srv_lab1", "maxUses": null}),
    );
    let shown = bare.unwrap().answer.shown("h", "n");
    assert_eq!(
        (&shown["serverName"], &shown["maxUses"]),
        (&Value::Null, &json!(0))
    );
}

#[test]
fn a_targeted_invite_is_seen_by_whoever_claims_its_host_only() {
    let shelf = with(&shelf(), json!({"code": "ALL"}));
    let shelf = with(&shelf, json!({"code": "B", "targetPeerId": "peer_b"}));
    let seen = |claimed| -> Vec<String> {
        let seen = shelf.public(claimed, NOW);
        seen.map(|invite| invite.code.clone()).collect()
    };
    assert_eq!(seen(None), ["ALL"]);
    assert_eq!(seen(Some("peer_c")), ["ALL"]);
    assert_eq!(seen(Some("peer_b")), ["ALL", "B"]);
    let by_host = with(&shelf, json!({"targetPeerId": "b.example"}));
    assert_eq!(by_host.invites()[2].target.as_deref(), Some("peer_b"));
}

#[test]
fn the_last_use_and_the_last_moment_end_an_invite() {
    let shelf = with(&shelf(), json!({"maxUses": 2}));
    let shelf = with(
        &shelf,
        json!({"code": "T", "expiresAt": "2023-11-14T22:13:21Z"}),
    );
    let once = shelf.spend("ABC", NOW).unwrap();
    assert_eq!(once.answer.uses, 1);
    let twice = once.shelf.spend("sinv_0", NOW).unwrap();
    assert_eq!(twice.answer.uses, 2);
    assert_eq!(twice.shelf.spend("ABC", NOW).unwrap_err(), Refused::Spent);
    assert!(shelf.spend("T", NOW + 999).is_ok());
    assert_eq!(shelf.spend("T", NOW + 1000).unwrap_err(), Refused::Spent);
    assert_eq!(shelf.public(None, NOW + 1000).count(), 1);
    assert_eq!(twice.shelf.public(None, NOW).count(), 1);
    assert_eq!(
        shelf.spend("nope", NOW).unwrap_err(),
        Refused::UnknownInvite
    );
}

#[test]
fn deleting_an_unknown_invite_is_refused_only_before_the_first_share_ever() {
    let empty = shelf();
    assert_eq!(empty.remove("nope").unwrap_err(), Refused::UnknownInvite);
    let first = share(&empty, json!({"code": "A", "serverId": "srv_lab1"})).unwrap();
    let gone = first.shelf.remove("sinv_0").unwrap();
    assert!(gone.answer.is_some() && gone.shelf.invites().is_empty());
    assert!(gone.shelf.remove("sinv_0").unwrap().answer.is_none());
    let after_restart = reread(&[&first.rows, &gone.rows]);
    assert!(after_restart.remove("nope").is_ok(), "it is remembered");
}

#[test]
fn what_the_store_kept_is_the_same_shelf_in_the_same_order() {
    let server = Shelf::default()
        .put_server(&json!({"id": "srv_lab1"}))
        .unwrap();
    let mut steps = vec![server.rows];
    let mut shelf = server.shelf;
    for n in 0..12 {
        let body = json!({"code": format!("C{n}"), "serverId": "srv_lab1", "maxUses": 3,
                          "targetPeerId": "peer_b"});
        let plan = share(&shelf, body).unwrap();
        (shelf, _) = (plan.shelf, steps.push(plan.rows));
    }
    let used = shelf.spend("C3", NOW).unwrap();
    (shelf, _) = (used.shelf, steps.push(used.rows));
    let steps: Vec<&[Record]> = steps.iter().map(Vec::as_slice).collect();
    assert_eq!(reread(&steps), shelf);
}

#[test]
fn a_full_shelf_drops_the_dead_and_never_the_living() {
    let mut full = with(&shelf(), json!({"maxUses": 1}));
    while full.invites.len() < MAX_INVITES {
        full = with(&full, json!({"code": "LIVE"}));
    }
    let more = json!({"code": "MORE", "serverId": "srv_lab1"});
    assert!(matches!(
        share(&full, more.clone()).unwrap_err(),
        Refused::Full(_)
    ));
    let room = full.spend("ABC", NOW).unwrap().shelf;
    let plan = share(&room, more).unwrap();
    assert_eq!(plan.shelf.invites.len(), MAX_INVITES);
    assert_eq!(plan.dropped[0].code, "ABC");
    assert!(
        plan.rows
            .iter()
            .any(|row| row.key == "sinv_0" && row.value.is_none())
    );
}

#[test]
fn a_server_is_ours_until_it_is_removed() {
    let shelf = shelf();
    let again = shelf
        .put_server(&json!({"id": "srv_lab1", "name": "Lab"}))
        .unwrap();
    assert!(again.rows.is_empty(), "nothing to write");
    assert_eq!(
        shelf.put_server(&json!({"id": "a b"})).unwrap_err(),
        Refused::BadServer
    );
    let gone = shelf.remove_server(&json!({"id": "srv_lab1"})).unwrap();
    assert!(gone.answer.1);
    let refused = share(&gone.shelf, json!({"code": "A", "serverId": "srv_lab1"}));
    assert_eq!(
        refused.unwrap_err(),
        Refused::UnknownServer("srv_lab1".into())
    );
    let twice = gone
        .shelf
        .remove_server(&json!({"id": "srv_lab1"}))
        .unwrap();
    assert!(!twice.answer.1 && twice.rows.is_empty());
}
