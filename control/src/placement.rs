//! Where threads run: whether poll cores are near their ports, and everything else away from poll cores.

use rnic_engine::port::OpenPort;

/// Keeps the calling thread, and those it starts from now on, off the CPUs that poll: the control thread would wait
/// there for a core that never rests, or the core for it. Without effect when no other CPU is left.
pub fn keep_off(cpus: &[u16]) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(mut left) = sched_getaffinity(None) else {
        return;
    };
    for cpu in cpus.iter().map(|cpu| usize::from(*cpu)) {
        if cpu < CpuSet::MAX_CPU {
            left.unset(cpu);
        }
    }
    if left.count() > 0
        && let Err(errno) = sched_setaffinity(None, &left)
    {
        tracing::debug!(%errno, "the control thread stays where the scheduler puts it");
    }
}

/// Warns of each poll core that is on another NUMA node than the port whose queue it serves: every frame would
/// cross between the nodes.
pub fn warn_of_distance(cpus: &[u16], ports: &[OpenPort]) {
    let Some(node_of) = node_lookup() else { return };
    for port in ports {
        let Some(port_node) = port.numa_node else { continue };
        for cpu in &cpus[..port.queues.len().min(cpus.len())] {
            if let Some(cpu_node) = node_of(*cpu)
                && cpu_node != port_node
            {
                tracing::warn!(
                    cpu, cpu_node, port = %port.name, port_node,
                    "this poll core is on another NUMA node than its port; choose CPUs of the port's node in cores.poll"
                );
            }
        }
    }
}

#[cfg(feature = "placement")]
fn node_lookup() -> Option<impl Fn(u16) -> Option<u32>> {
    use hwlocality::{Topology, object::types::ObjectType};
    let topology = match Topology::new() {
        Ok(topology) => topology,
        Err(error) => {
            tracing::debug!(%error, "the machine's topology could not be read");
            return None;
        }
    };
    Some(move |cpu: u16| {
        let nodes = topology.objects_with_type(ObjectType::NUMANode);
        let has = |node: &&hwlocality::object::TopologyObject| {
            node.cpuset().is_some_and(|set| set.is_set(usize::from(cpu)))
        };
        let node = nodes.into_iter().find(has)?;
        node.os_index().and_then(|index| u32::try_from(index).ok())
    })
}

#[cfg(not(feature = "placement"))]
fn node_lookup() -> Option<fn(u16) -> Option<u32>> {
    None
}

#[cfg(all(test, feature = "placement"))]
mod tests {
    #[test]
    fn every_machine_has_a_node_for_its_first_allowed_cpu() {
        let set = rustix::thread::sched_getaffinity(None).unwrap();
        let cpu = (0..1024).find(|cpu| set.is_set(*cpu)).unwrap();
        let node_of = super::node_lookup().expect("hwloc reads the topology");
        assert!(node_of(cpu as u16).is_some());
    }
}
