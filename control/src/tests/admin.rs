use rnic_abi::INVALIDATABLE;

use crate::{
    AdminRequest,
    res::{ResKind, ResPage, ResQuery, ResSummary},
    testing::*,
};

#[test]
fn nonsense_is_answered_with_what_would_be_right() {
    let daemon = TestDaemon::start(1);
    for line in [
        &b"{}\n"[..],
        b"status\n",
        b"{\"request\":\"reboot\"}\n",
        b"\xFF\xFE\n",
        b"\n",
    ] {
        let answer = daemon.admin_line(line);
        assert!(
            answer.contains("error") && answer.contains("requests are status"),
            "{answer}"
        );
    }
    assert_eq!(daemon.admin_line(&[b'x'; 100_000]), "", "a request without end");
    daemon.status();
}

#[test]
fn one_connection_can_ask_again_and_many_can_ask_at_once() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qpns: Vec<u32> = (0..40).map(|_| client.qp(pd, cq).qpn).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut listed: Vec<u32> = daemon.qps().iter().map(|qp| qp.qpn).collect();
                listed.sort_unstable();
                let mut wanted = qpns.clone();
                wanted.sort_unstable();
                assert_eq!(listed, wanted);
            });
        }
    });
    let devices = daemon.admin(AdminRequest::Dev);
    assert_eq!(devices[1]["name"], "rnic1");
    assert_eq!(daemon.status().qps, 40);
}

#[test]
fn what_a_request_has_beyond_its_fields_is_an_error() {
    let daemon = TestDaemon::start(1);
    for line in [
        &b"{\"request\":\"status\",\"verbose\":true}\n"[..],
        b"{\"request\":\"res\",\"kind\":\"qp\"}\n",
        b"{\"request\":\"res_show\",\"kind\":\"qp\",\"limit\":7}\n",
    ] {
        let answer = daemon.admin_line(line);
        assert!(answer.contains("unknown field"), "{answer}");
    }
}

/// All objects of a kind, page by page, and how many pages they took.
pub fn resources(daemon: &TestDaemon, kind: ResKind, pid: Option<i32>) -> (Vec<serde_json::Value>, usize) {
    let (mut all, mut pages, mut after) = (Vec::new(), 0, 0);
    loop {
        let query = ResQuery {
            kind,
            after,
            pid,
            qpn: None,
        };
        let page: ResPage = serde_json::from_value(daemon.admin(AdminRequest::ResShow(query))).unwrap();
        assert!(page.objects.len() <= 256);
        all.extend(page.objects);
        pages += 1;
        match page.next {
            Some(next) => after = next,
            None => return (all, pages),
        }
    }
}

#[test]
fn resources_are_shown_with_their_owners_users_and_errors_in_pages() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qps: Vec<_> = (0..300).map(|_| client.qp(pd, cq)).collect();
    let failed = &qps[299];
    client.make_init(failed.handle);
    client.make_rtr(failed.handle, "10.0.0.2", failed.qpn).unwrap();
    client.make_rts(failed.handle);
    crate::tests::hostile::forge_tail(&client, failed);
    client.event(0);

    let me = std::process::id() as i32;
    let (shown, pages) = resources(&daemon, ResKind::Qp, Some(me));
    assert_eq!((shown.len(), pages), (300, 2));
    let mut qpns: Vec<_> = shown
        .iter()
        .map(|qp| qp["qpn"].as_u64().unwrap() as u32)
        .collect();
    qpns.sort_unstable();
    qpns.dedup();
    assert_eq!(qpns.len(), 300, "each once");
    let of = |qpn: u32| shown.iter().find(|qp| qp["qpn"] == qpn).unwrap();
    let broken = of(failed.qpn);
    assert_eq!((&broken["state"], &broken["pid"]), (&"ERR".into(), &me.into()));
    assert_eq!(broken["last_error"]["check"], "SendQueue");
    assert!(broken["last_error"]["ago_ms"].is_u64() && broken["age_ms"].is_u64());
    assert!(broken["uid"].is_u64() && broken["comm"].is_string());
    assert!(of(qps[0].qpn)["last_error"].is_null());

    let (pds, _) = resources(&daemon, ResKind::Pd, None);
    assert_eq!((pds.len(), &pds[0]["users"]), (1, &300.into()));
    let (cqs, _) = resources(&daemon, ResKind::Cq, None);
    assert_eq!((&cqs[0]["users"], &cqs[0]["state"]), (&600.into(), &"ok".into()));
    let (clients, _) = resources(&daemon, ResKind::Client, None);
    assert_eq!(clients[0]["objects"], 302);
    assert!(resources(&daemon, ResKind::Srq, None).0.is_empty());
    assert!(
        resources(&daemon, ResKind::Qp, Some(1)).0.is_empty(),
        "another process"
    );
    let sums: Vec<ResSummary> = serde_json::from_value(daemon.admin(AdminRequest::Res)).unwrap();
    assert_eq!((sums[0].qp, sums[0].pd, sums[1].qp, sums[0].ctx), (300, 1, 0, 1));
}

#[test]
fn regions_and_address_handles_are_shown_with_what_they_permit_and_lead_to() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let pd = client.pd();
    let fd = sealed_memfd(8192);
    let registered = [INVALIDATABLE | 7, 0].map(|access| client.try_mr(pd, &fd, 8192, access).unwrap());
    let ah = client.try_ah(pd, 0, av("10.0.0.2")).unwrap();
    let (mrs, _) = resources(&daemon, ResKind::Mr, None);
    let of = |key: u32| mrs.iter().find(|mr| mr["key"] == key).unwrap();
    let (mr, plain) = (of(registered[0].rkey), of(registered[1].rkey));
    assert_eq!((&mr["iova"], &mr["length"]), (&0x10_0000.into(), &8192.into()));
    assert_eq!(mr["access"], "LOCAL_WRITE|REMOTE_WRITE|REMOTE_READ");
    assert_eq!(
        (&mr["invalidatable"], &mr["state"]),
        (&true.into(), &"valid".into())
    );
    assert_eq!(
        (&plain["access"], &plain["invalidatable"]),
        (&"NONE".into(), &false.into())
    );
    let (pds, _) = resources(&daemon, ResKind::Pd, None);
    assert_eq!((&mr["pdn"], &pds[0]["users"]), (&pds[0]["pdn"], &3.into()));
    let (ahs, _) = resources(&daemon, ResKind::Ah, None);
    assert_eq!(
        (ahs.len(), &ahs[0]["dgid"], &ahs[0]["handle"]),
        (
            1,
            &"0000:0000:0000:0000:0000:ffff:0a00:0002".into(),
            &ah.handle.into()
        )
    );
}
