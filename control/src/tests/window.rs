//! Memory windows as a client makes and destroys them: what holds what, what is shown, and what goes with what.
use std::sync::atomic::Ordering;

use rnic_abi::*;
use rustix::io::Errno;
use serde_json::Value;

use crate::{
    AdminRequest,
    res::{ResKind, ResQuery},
    testing::*,
    tests::hostile::ring,
};

/// Where the regions of these clients begin.
const IOVA: u64 = 0x10_0000;

/// A work request that binds a window for peers that write; `key` is the one it is to have.
pub fn bind(key: u32, region: u32, addr: u64, length: u64) -> Wqe {
    let operands = BindOperands {
        length,
        access: 2,
        reserved: 0,
    };
    let mut wqe = Wqe {
        wr_id: 5,
        opcode: 8,
        flags: wqe_flags::SIGNALED,
        units: 1,
        imm_or_rkey: key,
        remote_addr: addr,
        rkey: region,
        ..Wqe::default()
    };
    wqe.sges[1] = operands.into();
    wqe
}

/// A client with a region for windows and a QP to bind them on.
struct Binder {
    client: Client,
    pd: u32,
    region: RegMrReply,
    qp: CreateQpReply,
    cq: CreateCqReply,
    posted: u32,
}

impl Binder {
    fn new(daemon: &TestDaemon) -> Self {
        let mut client = daemon.client();
        let pd = client.pd();
        let cq = client.try_cq(64, 0).unwrap();
        let region = client.try_mr(pd, &sealed_memfd(8192), 8192, 0x17).unwrap();
        let qp = client.connected_qp(pd, cq.handle);
        client.make_rts(qp.handle);
        Binder {
            client,
            pd,
            region,
            qp,
            cq,
            posted: 0,
        }
    }

    fn window(&mut self, mw_type: u32) -> Result<AllocMwReply, Refused> {
        let arg = AllocMw { pd: self.pd, mw_type };
        self.client.call(Op::AllocMw, &arg)
    }

    /// Posts a work request; the status of its completion.
    fn execute(&mut self, wqe: Wqe) -> u8 {
        let region = &self.client.context().region;
        let at = self.qp.sq_offset as usize + RING_ENTRIES + self.posted as usize * WQE_UNIT;
        assert!(region.write(at, &wqe));
        self.posted += 1;
        ring(&self.client, &self.qp, self.posted);
        let ring = self.cq.offset as usize + cq_subring_offset(self.cq.depth, self.qp.doorbell_block);
        let tail = region.u32(ring + RingIndices::TAIL).unwrap();
        wait_for(|| tail.load(Ordering::Acquire) == self.posted);
        let entry = ring + RING_ENTRIES + (self.posted as usize - 1) * size_of::<Cqe>();
        region.read::<Cqe>(entry).unwrap().status
    }

    fn bind(&mut self, key: u32) -> u8 {
        self.execute(bind(key, self.region.lkey, IOVA, 4096))
    }
}

fn shown(daemon: &TestDaemon) -> Vec<Value> {
    let query = ResQuery {
        kind: ResKind::Mw,
        after: 0,
        pid: None,
        qpn: None,
    };
    let page = daemon.admin(AdminRequest::ResShow(query));
    page["objects"].as_array().unwrap().clone()
}

#[test]
fn a_region_with_bound_windows_is_busy_and_stays_usable() {
    let daemon = TestDaemon::start(2);
    let mut binder = Binder::new(&daemon);
    let windows = [1, 2].map(|mw_type| binder.window(mw_type).unwrap());
    for window in &windows {
        assert_eq!(binder.bind(window.rkey | 1), 0);
    }
    let region = binder.region;
    for _ in 0..2 {
        let refused = binder.client.destroy(Op::DeregMr, region.handle).unwrap_err();
        assert_eq!(refused.errno, Errno::BUSY);
        assert!(refused.text.contains("windows"), "{}", refused.text);
    }
    assert_eq!(binder.bind(windows[0].rkey | 2), 0, "rebound: the key is valid");
    for window in &windows {
        binder.client.destroy(Op::DeallocMw, window.handle).unwrap();
    }
    binder.client.destroy(Op::DeregMr, region.handle).unwrap();
    assert_eq!(daemon.status().mws, 0);
}

#[test]
fn windows_are_shown_with_what_they_are_bound_to() {
    let daemon = TestDaemon::start(1);
    let mut binder = Binder::new(&daemon);
    let [one, two] = [1, 2].map(|mw_type| binder.window(mw_type).unwrap());
    assert!(
        shown(&daemon)
            .iter()
            .all(|mw| mw["state"] == "unbound" && mw["key"].is_null())
    );
    assert_eq!(binder.bind(two.rkey | 9), 0);
    let shown = shown(&daemon);
    let of = |handle: u32| shown.iter().find(|mw| mw["handle"] == handle).unwrap();
    assert_eq!(
        (&of(one.handle)["type"], &of(one.handle)["state"]),
        (&1.into(), &"unbound".into())
    );
    let bound = of(two.handle);
    let expected = [
        ("state", Value::from("bound")),
        ("type", 2.into()),
        ("key", (two.rkey | 9).into()),
        ("mr_key", binder.region.rkey.into()),
        ("addr", IOVA.into()),
        ("length", 4096.into()),
        ("access", "REMOTE_WRITE".into()),
        ("qpn", binder.qp.qpn.into()),
    ];
    for (field, value) in expected {
        assert_eq!(bound[field], value, "{field}");
    }
    assert_eq!(daemon.status().mws, 2);
}

#[test]
fn a_window_of_type_2_is_unbound_with_its_qp() {
    let daemon = TestDaemon::start(1);
    let mut binder = Binder::new(&daemon);
    let window = binder.window(2).unwrap();
    assert_eq!(binder.bind(window.rkey | 1), 0);
    binder.client.destroy_counting(Op::DestroyQp, binder.qp.handle);
    assert_eq!(shown(&daemon)[0]["state"], "unbound");
    binder.client.destroy(Op::DeregMr, binder.region.handle).unwrap();
    binder.client.destroy(Op::DeallocMw, window.handle).unwrap();
    binder.client.destroy(Op::DeallocPd, binder.pd).unwrap();
}

#[test]
fn a_client_that_dies_takes_its_bound_windows_along() {
    let daemon = TestDaemon::start(2);
    let mut binder = Binder::new(&daemon);
    for mw_type in [1, 2, 1] {
        let window = binder.window(mw_type).unwrap();
        assert_eq!(binder.bind(window.rkey | 1), 0);
    }
    drop(binder);
    daemon.wait_for_baseline();
}

#[test]
fn windows_have_a_type_a_pd_and_a_quota() {
    let daemon = TestDaemon::with(1, "limits: {per_client: {mws: 2}}");
    let mut binder = Binder::new(&daemon);
    let refused = binder.window(3).unwrap_err();
    assert!(refused.text.contains("mw_type is 3"), "{}", refused.text);
    let first = binder.window(1).unwrap();
    binder.window(2).unwrap();
    let refused = binder.window(1).unwrap_err();
    assert!(refused.text.contains("limits.per_client.mws"), "{}", refused.text);
    binder.client.destroy(Op::DeallocMw, first.handle).unwrap();
    binder.window(1).unwrap();
    let refused = binder.client.destroy(Op::DeallocPd, binder.pd).unwrap_err();
    assert_eq!(refused.errno, Errno::BUSY);
    // A window that is gone is bound by nobody.
    assert_eq!(binder.bind(first.rkey | 1), 6, "IBV_WC_MW_BIND_ERR");
}
