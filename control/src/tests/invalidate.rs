//! Deregistration while a poll core is in the middle of a pass (DESIGN I9).
use std::time::Duration;

use rnic_abi::*;
use rustix::io::Errno;

use crate::{
    AdminRequest,
    res::{ResKind, ResQuery},
    testing::*,
};

fn state_of(daemon: &TestDaemon, key: u32) -> serde_json::Value {
    let query = ResQuery {
        kind: ResKind::Mr,
        after: 0,
        pid: None,
        qpn: None,
    };
    let page = daemon.admin(AdminRequest::ResShow(query));
    let mrs = page["objects"].as_array().unwrap();
    mrs.iter().find(|mr| mr["key"] == key).unwrap()["state"].clone()
}

#[test]
fn deregistration_ends_when_no_core_can_use_the_memory_and_the_other_form_says_eagain_until_then() {
    let gate = Gate::default();
    let daemon = TestDaemon::with_port(|queue| gate.before(queue));
    // Dropped before the daemon, which cannot stop while its core is held.
    let gate = gate;
    let (mut client, mut other) = (daemon.client(), daemon.client());
    let pd = client.pd();
    let fd = sealed_memfd(8192);
    let [first, second] = [(); 2].map(|()| client.try_mr(pd, &fd, 8192, 7).unwrap());
    let dereg = |mr: RegMrReply, flags| DeregMr {
        handle: mr.handle,
        flags,
    };
    gate.close();
    for _ in 0..3 {
        let refused = client
            .call::<Empty>(Op::DeregMr, &dereg(first, DEREG_NONBLOCK))
            .unwrap_err();
        assert_eq!(refused.errno, Errno::AGAIN, "{}", refused.text);
    }
    assert_eq!(
        state_of(&daemon, first.rkey),
        "invalid",
        "from the first request on"
    );
    assert_eq!(state_of(&daemon, second.rkey), "valid");
    client.send(Op::DeregMr, &dereg(second, 0), &[]);
    assert!(
        !client.wait(Duration::from_millis(100)),
        "answered while a core may still use the memory"
    );
    assert_eq!(state_of(&daemon, second.rkey), "invalid");
    // Nobody waits with it.
    let pd_of_other = other.pd();
    let mr = other.try_mr(pd_of_other, &fd, 4096, 1).unwrap();
    assert_eq!(state_of(&daemon, mr.rkey), "valid");
    drop(gate);
    client.result::<Empty>().unwrap();
    wait_for(|| {
        client
            .call::<Empty>(Op::DeregMr, &dereg(first, DEREG_NONBLOCK))
            .is_ok()
    });
    client.destroy(Op::DeallocPd, pd).unwrap();
}
