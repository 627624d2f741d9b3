//! Changing QPs, and what a query tells of them.

use rnic_abi::*;
use rustix::io::Errno;

use crate::testing::*;

fn query(client: &mut Client, handle: u32) -> QueryQpReply {
    let arg = HandleArg { handle, reserved: 0 };
    client.call(Op::QueryQp, &arg).unwrap()
}

/// A QP in RTS, connected to itself.
fn live(client: &mut Client) -> CreateQpReply {
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.connected_qp(pd, cq);
    client.make_rts(qp.handle);
    qp
}

#[test]
fn a_query_tells_every_attribute_and_what_the_qp_was_made_with() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq, other) = (client.pd(), client.cq(), client.cq());
    let arg = CreateQp {
        pd,
        send_cq: cq,
        recv_cq: other,
        qp_type: 2,
        sq_units: 9,
        rq_units: 3,
        sq_sig_all: 1,
        srq: 0,
    };
    let qp: CreateQpReply = client.call(Op::CreateQp, &arg).unwrap();
    let init = QpInitAttrs {
        qp_type: 2,
        sq_units: 16,
        rq_units: 4,
        sq_sig_all: 1,
        pd,
        send_cq: cq,
        recv_cq: other,
        srq: 0,
    };
    assert_eq!(query(&mut client, qp.handle).init, init, "before its core has it");
    client.make_init(qp.handle);
    let path = Av {
        flow_label: 0x1_2345,
        hop_limit: 9,
        traffic_class: 0x20,
        ..av("10.0.0.1")
    };
    let rtr = QpAttrs {
        rq_psn: 7,
        max_dest_rd_atomic: 3,
        min_rnr_timer: 11,
        ah_attr: path,
        ..rtr("10.0.0.1", qp.qpn)
    };
    client.modify(qp.handle, RTR, rtr).unwrap();
    client.make_rts(qp.handle);
    let told = query(&mut client, qp.handle);
    assert_eq!((told.init, told.cause), (init, Cause::default()));
    let expected = QpAttrs {
        qp_state: 3,
        cur_qp_state: 3,
        port_num: 1,
        qp_access_flags: 7,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        ..rtr
    };
    assert_eq!(told.attrs, expected);
}

#[test]
fn what_would_need_a_second_path_is_refused_by_its_name() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let qp = live(&mut client).handle;
    let migrate = |path_mig_state| QpAttrs {
        path_mig_state,
        ..QpAttrs::default()
    };
    let refused = client
        .modify(qp, qp_mask::ALT_PATH, QpAttrs::default())
        .unwrap_err();
    assert_eq!(refused.errno, Errno::OPNOTSUPP);
    assert!(
        refused.text.contains("ALT_PATH is not supported"),
        "{}",
        refused.text
    );
    let refused = client
        .modify(qp, qp_mask::PATH_MIG_STATE, migrate(1))
        .unwrap_err();
    assert_eq!(refused.errno, Errno::OPNOTSUPP);
    assert!(refused.text.contains("always MIGRATED (0)"), "{}", refused.text);
    let refused = client
        .modify(qp, qp_mask::PATH_MIG_STATE, migrate(9))
        .unwrap_err();
    assert_eq!(refused.errno, Errno::INVAL);
    client.modify(qp, qp_mask::PATH_MIG_STATE, migrate(0)).unwrap();
    let refused = client.modify(qp, qp_mask::CAP, QpAttrs::default()).unwrap_err();
    assert!(refused.text.contains("does not permit CAP"), "{}", refused.text);
}

#[test]
fn a_live_qp_takes_what_its_state_permits_and_keeps_the_rest() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let qp = live(&mut client).handle;
    let before = query(&mut client, qp).attrs;
    let change = QpAttrs {
        qp_access_flags: 4,
        min_rnr_timer: 20,
        timeout: 3,
        ..QpAttrs::default()
    };
    client
        .modify(qp, qp_mask::ACCESS_FLAGS | qp_mask::MIN_RNR_TIMER, change)
        .unwrap();
    let expected = QpAttrs {
        qp_access_flags: 4,
        min_rnr_timer: 20,
        ..before
    };
    assert_eq!(query(&mut client, qp).attrs, expected);
    let refused = client.modify(qp, qp_mask::TIMEOUT, change).unwrap_err();
    assert!(
        refused.text.contains("RTS to RTS does not permit TIMEOUT"),
        "{}",
        refused.text
    );
    // In SQD it may be changed, and the path with it.
    let sqd = QpAttrs {
        qp_state: 4,
        cur_qp_state: 4,
        timeout: 3,
        ah_attr: Av {
            hop_limit: 5,
            ..av("10.0.0.2")
        },
        ..QpAttrs::default()
    };
    client.modify(qp, qp_mask::STATE, sqd).unwrap();
    client.modify(qp, qp_mask::TIMEOUT | qp_mask::AV, sqd).unwrap();
    let wrong = QpAttrs {
        qp_state: 3,
        cur_qp_state: 3,
        ..QpAttrs::default()
    };
    let refused = client
        .modify(qp, qp_mask::STATE | qp_mask::CUR_STATE, wrong)
        .unwrap_err();
    assert!(
        refused.text.contains("cur_state says RTS but the QP is in SQD"),
        "{}",
        refused.text
    );
    let back = QpAttrs {
        cur_qp_state: 4,
        ..wrong
    };
    client
        .modify(qp, qp_mask::STATE | qp_mask::CUR_STATE, back)
        .unwrap();
    let told = query(&mut client, qp).attrs;
    assert_eq!((told.qp_state, told.timeout, told.ah_attr), (3, 3, sqd.ah_attr));
    assert_eq!(told.sq_draining, 0);
}
