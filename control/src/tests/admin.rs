use crate::{AdminRequest, testing::*};

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
    assert_eq!(daemon.admin_line(&[b'x'; 10_000]), "", "a request without end");
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
