//! The poll loop: ports, views, memory access and client rings.
