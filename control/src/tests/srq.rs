use rnic_abi::*;
use rustix::io::Errno;
use zerocopy::FromZeros;

use crate::{res::ResKind, testing::*, tests::admin::resources};

pub fn create(client: &mut Client, pd: u32, max_wr: u32, max_sge: u32) -> Result<CreateSrqReply, Refused> {
    let arg = CreateSrq {
        pd,
        max_wr,
        max_sge,
        reserved: 0,
    };
    client.call(Op::CreateSrq, &arg)
}

pub fn qp_on(client: &mut Client, pd: u32, cq: u32, srq: u32) -> Result<CreateQpReply, Refused> {
    let arg = CreateQp {
        pd,
        send_cq: cq,
        recv_cq: cq,
        qp_type: 2,
        sq_units: 16,
        // Ignored with an SRQ, however large.
        rq_units: u32::MAX,
        srq,
        ..CreateQp::default()
    };
    client.call(Op::CreateQp, &arg)
}

pub fn limit(client: &mut Client, handle: u32, mask: u32, srq_limit: u32) -> Result<(), Refused> {
    let arg = ModifySrq {
        handle,
        mask,
        max_wr: 1,
        srq_limit,
    };
    client.call::<Empty>(Op::ModifySrq, &arg).map(drop)
}

fn query(client: &mut Client, handle: u32) -> QuerySrqReply {
    client
        .call(Op::QuerySrq, &HandleArg { handle, reserved: 0 })
        .unwrap()
}

#[test]
fn qps_are_made_on_the_core_of_their_srq_and_have_no_receive_queue() {
    let daemon = TestDaemon::start(3);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    for _ in 0..4 {
        let srq = create(&mut client, pd, 10, 5).unwrap();
        assert_eq!((srq.stride, srq.depth, srq.max_wr, srq.max_sge), (2, 32, 16, 6));
        let qps: Vec<_> = (0..5)
            .map(|_| qp_on(&mut client, pd, cq, srq.handle).unwrap())
            .collect();
        assert!(qps.iter().all(|qp| (qp.rq_offset, qp.rq_depth) == (0, 0)));
        let cores: Vec<u32> = qps.iter().map(|qp| qp.doorbell_block).collect();
        let (shown, _) = resources(&daemon, ResKind::Srq, None);
        let shown = shown.iter().find(|shown| shown["srqn"] == srq.srqn).unwrap();
        assert!(cores.iter().all(|core| shown["core"] == *core), "{cores:?}");
        assert_eq!(shown["users"], 5);
        let (listed, _) = resources(&daemon, ResKind::Qp, None);
        let on = listed.iter().filter(|qp| qp["srqn"] == srq.srqn).count();
        assert_eq!(on, 5);
    }
    assert_eq!(daemon.status().srqs, 4);
    drop(client);
    daemon.wait_for_baseline();
}

#[test]
fn an_srq_is_busy_while_qps_use_it_and_its_pd_while_it_exists() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let (pd, own_pd, cq) = (client.pd(), client.pd(), client.cq());
    let srq = create(&mut client, own_pd, 4, 1).unwrap().handle;
    // Of another PD than its SRQ.
    let qp = qp_on(&mut client, pd, cq, srq).unwrap().handle;
    let busy = |client: &mut Client, op, handle| client.destroy(op, handle).unwrap_err().errno;
    let counting = |client: &mut Client, op, handle| {
        client
            .call::<DestroyReply>(op, &HandleArg { handle, reserved: 0 })
            .map(|reply| reply.events_reported)
    };
    let refused = counting(&mut client, Op::DestroySrq, srq).unwrap_err();
    assert_eq!(refused.errno, Errno::BUSY);
    assert_eq!(busy(&mut client, Op::DeallocPd, own_pd), Errno::BUSY);
    assert_eq!(counting(&mut client, Op::DestroyQp, qp), Ok(0));
    assert_eq!(counting(&mut client, Op::DestroySrq, srq), Ok(0));
    assert_eq!(client.destroy(Op::DeallocPd, own_pd), Ok(()));
    let gone = counting(&mut client, Op::DestroySrq, srq).unwrap_err();
    assert!(gone.text.contains("no such SRQ"), "{}", gone.text);
}

#[test]
fn sizes_masks_and_limits_are_checked_and_the_quota_holds() {
    let daemon = TestDaemon::with(
        1,
        "limits: {clients: 1, per_client: {srqs: 2, queue_memory: 8MiB, cq_depth: 64, wr_depth: 64}}",
    );
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let text = |result: Result<CreateSrqReply, Refused>| result.unwrap_err().text;
    assert!(text(create(&mut client, pd, 1, 33)).contains("max_sge is 33"));
    assert!(text(create(&mut client, pd, 65, 1)).contains("limits.per_client.wr_depth"));
    assert!(text(create(&mut client, pd, u32::MAX, 32)).contains("max_wr"));
    assert!(text(create(&mut client, cq, 1, 1)).contains("must be a PD"));
    let srq = create(&mut client, pd, 64, 1).unwrap().handle;
    let refused = limit(&mut client, srq, srq_mask::MAX_WR, 0).unwrap_err();
    assert_eq!(refused.errno, Errno::OPNOTSUPP);
    for (mask, value) in [(0, 1), (4, 1), (srq_mask::LIMIT, 65)] {
        assert_eq!(
            limit(&mut client, srq, mask, value).unwrap_err().errno,
            Errno::INVAL
        );
    }
    let refused = qp_on(&mut client, pd, cq, pd).unwrap_err();
    assert!(refused.text.contains("must be a SRQ") || refused.text.contains("must be an SRQ"));
    create(&mut client, pd, 1, 1).unwrap();
    assert!(text(create(&mut client, pd, 1, 1)).contains("limits.per_client.srqs"));
}

#[test]
fn the_limit_is_told_when_fewer_are_posted_and_is_disarmed_by_it() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let pd = client.pd();
    let srq = create(&mut client, pd, 16, 1).unwrap();
    let tail = client
        .context()
        .region
        .u32(srq.offset as usize + RingIndices::TAIL)
        .unwrap();
    tail.store(8, std::sync::atomic::Ordering::Release);
    limit(&mut client, srq.handle, srq_mask::LIMIT, 8).unwrap();
    let armed = QuerySrqReply {
        max_wr: 16,
        max_sge: 2,
        srq_limit: 8,
        reserved: 0,
    };
    assert_eq!(query(&mut client, srq.handle), armed);
    // Eight are not fewer than eight; nine would be needed for this one.
    limit(&mut client, srq.handle, srq_mask::LIMIT, 9).unwrap();
    client.await_events(1);
    wait_for(|| query(&mut client, srq.handle).srq_limit == 0);
    let arg = HandleArg {
        handle: srq.handle,
        reserved: 0,
    };
    let mut reply = DestroyReply::new_zeroed();
    reply.clone_from(&client.call(Op::DestroySrq, &arg).unwrap());
    assert!(reply.events_reported <= 1);
}
