//! Bursts: what requests that come together share.

use std::time::Duration;

use rnic_abi::{CreateQpReply, DestroyReply, Empty, HandleArg, Op};

use crate::{
    Control,
    testing::{Client, HeldControl},
};

const CLIENTS: usize = 125;
/// Each client asks for one at a time.
const ROUNDS: usize = 8;
const BURST: usize = CLIENTS * ROUNDS;
/// A core carries out 64 commands a pass: the answers to a thousand come in 16 parts, and whoever looks in the midst of a
/// part may publish twice for it.
const HANDFUL: u64 = 40;

const LIMITS: &str = "limits: {clients: 125, qps: 4096, per_client: {qps: 1000, cqs: 4, mrs: 4, pds: 4, \
                      wr_depth: 16, cq_depth: 64, queue_memory: 4MiB}}";

/// Publications so far, and epochs: publications and grace periods.
fn counts(control: &mut Control) -> (u64, u64) {
    (control.engine.publisher().commits(), control.engine.epoch().get())
}

fn assert_shared(what: &str, before: (u64, u64), after: (u64, u64), least: u64) {
    let (commits, epochs) = (after.0 - before.0, after.1 - before.1);
    assert!(
        (least..=HANDFUL).contains(&commits),
        "{commits} publications for {BURST} {what}"
    );
    assert!(
        epochs <= 3 * HANDFUL,
        "{epochs} epochs for {BURST} {what}: grace periods are not shared"
    );
}

fn answered(clients: &[(Client, Vec<CreateQpReply>)]) -> bool {
    clients.iter().all(|(client, _)| client.wait(Duration::ZERO))
}

#[test]
fn a_burst_of_qps_that_become_ready_and_are_destroyed_shares_publications_and_grace_periods() {
    let mut daemon = HeldControl::with(1, LIMITS);
    let none = counts(&mut daemon.control);
    let mut clients: Vec<(Client, Vec<CreateQpReply>)> = daemon.serve(|socket| {
        let client = |_| {
            let mut client = Client::connect(socket);
            client.hello();
            let (pd, cq) = (client.pd(), client.cq());
            let qps: Vec<_> = (0..ROUNDS).map(|_| client.qp(pd, cq)).collect();
            qps.iter().for_each(|qp| client.make_init(qp.handle));
            (client, qps)
        };
        (0..CLIENTS).map(client).collect()
    });
    let before = counts(&mut daemon.control);
    assert_eq!(before.0, none.0, "no core needs a QP in INIT");
    for round in 0..ROUNDS {
        for (client, qps) in &mut clients {
            client.send_rtr(qps[round].handle, qps[round].qpn);
        }
        daemon.run_until(|_| answered(&clients));
        for (client, _) in &clients {
            client.result::<Empty>().unwrap();
        }
    }
    let after = counts(&mut daemon.control);
    assert_shared("QPs that become ready to receive", before, after, 1);
    for round in 0..ROUNDS {
        for (client, qps) in &mut clients {
            let handle = qps[round].handle;
            client.send(Op::DestroyQp, &HandleArg { handle, reserved: 0 }, &[]);
        }
        daemon.run_until(|_| answered(&clients));
        for (client, _) in &clients {
            client.result::<DestroyReply>().unwrap();
        }
    }
    assert_shared("destroys", after, counts(&mut daemon.control), 1);
    drop(clients);
    daemon.end();
}

#[test]
fn the_death_of_a_client_with_a_thousand_qps_is_a_handful_of_publications_and_grace_periods() {
    let mut daemon = HeldControl::with(1, LIMITS);
    let client = daemon.serve(|socket| {
        let mut client = Client::connect(socket);
        client.hello();
        let (pd, cq) = (client.pd(), client.cq());
        for _ in 0..BURST {
            client.connected_qp(pd, cq);
        }
        client
    });
    let before = counts(&mut daemon.control);
    drop(client);
    daemon.run_until(|control| control.connections.is_empty());
    assert_shared("QPs of a dead client", before, counts(&mut daemon.control), 1);
    daemon.end();
}

#[test]
fn the_qps_of_a_client_that_dies_while_a_core_takes_one_in_are_unpublished_before_they_are_stopped() {
    let mut daemon = HeldControl::with(1, LIMITS);
    let (mut client, qp) = daemon.serve(|socket| {
        let mut client = Client::connect(socket);
        client.hello();
        let (pd, cq) = (client.pd(), client.cq());
        client.connected_qp(pd, cq);
        let qp = client.qp(pd, cq);
        client.make_init(qp.handle);
        (client, qp)
    });
    client.send_rtr(qp.handle, qp.qpn);
    drop(client);
    // It is seen to have left while a core takes the QP in, and goes on leaving as that QP's publication is made.
    let control = &mut daemon.control;
    let conns: Vec<u32> = control.connections.keys().copied().collect();
    for conn in conns {
        control.serve(conn);
    }
    assert_eq!(control.ops.unanswered(), 1, "a core is taking it in");
    while control.ops.unanswered() > 0 {
        let mut answers = Vec::new();
        control.engine.poll(|core, message| answers.push((core, message)));
        for (core, answer) in answers {
            control.answered(core, answer);
        }
    }
    control.publish_batch();
    assert!(
        control.engine.publisher().is_dirty(),
        "its QPs wait for the next publication"
    );
    assert_eq!(control.ops.unanswered(), 0, "stopped before they are unpublished");
    control.publish_batch();
    assert_eq!(control.ops.unanswered(), 2, "both are being stopped");
    daemon.run_until(|control| control.connections.is_empty());
    daemon.end();
}
