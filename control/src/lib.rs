//! The control thread of `rnicd`.
mod device;
mod events;
mod neighbour;
mod objects;
mod refusal;
mod region_alloc;
mod request;
mod route;
mod session;
mod slowpath;
mod socket;
