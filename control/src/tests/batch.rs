//! Bursts: what requests that come together share.

use std::time::Duration;

use rnic_abi::{CreateQpReply, DestroyReply, HandleArg, Op};

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

fn answered(clients: &[Client]) -> bool {
    clients.iter().all(|client| client.wait(Duration::ZERO))
}

#[test]
fn a_burst_of_creates_and_destroys_shares_publications_and_grace_periods() {
    let mut daemon = HeldControl::with(1, LIMITS);
    let mut clients: Vec<(Client, u32, u32)> = daemon.serve(|socket| {
        let client = |_| {
            let mut client = Client::connect(socket);
            client.hello();
            let (pd, cq) = (client.pd(), client.cq());
            (client, pd, cq)
        };
        (0..CLIENTS).map(client).collect()
    });
    let mut qps = Vec::new();
    let before = counts(&mut daemon.control);
    for _ in 0..ROUNDS {
        for (client, pd, cq) in &mut clients {
            client.send_create(*pd, *cq);
        }
        daemon.run_until(|_| clients.iter().all(|(client, ..)| client.wait(Duration::ZERO)));
        for (client, ..) in &clients {
            qps.push(client.result::<CreateQpReply>().unwrap().0.handle);
        }
    }
    let after = counts(&mut daemon.control);
    assert_shared("creates", before, after, 1);
    let mut clients: Vec<Client> = clients.into_iter().map(|(client, ..)| client).collect();
    for round in qps.chunks(CLIENTS) {
        for (client, &handle) in clients.iter_mut().zip(round) {
            client.send(Op::DestroyQp, &HandleArg { handle, reserved: 0 }, &[]);
        }
        daemon.run_until(|_| answered(&clients));
        for client in &clients {
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
            client.qp(pd, cq);
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
fn the_qps_of_a_client_that_dies_before_its_create_is_answered_are_unpublished_before_they_are_stopped() {
    let mut daemon = HeldControl::with(1, LIMITS);
    let (mut client, pd, cq) = daemon.serve(|socket| {
        let mut client = Client::connect(socket);
        client.hello();
        let (pd, cq) = (client.pd(), client.cq());
        client.qp(pd, cq);
        (client, pd, cq)
    });
    client.send_create(pd, cq);
    drop(client);
    // It is seen to have left while a core takes the QP in, and goes on leaving as that QP's publication is made.
    let control = &mut daemon.control;
    let conns: Vec<u32> = control.connections.keys().copied().collect();
    for conn in conns {
        control.serve(conn);
    }
    assert_eq!(control.ops.unanswered(), 1, "the create is under way");
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
