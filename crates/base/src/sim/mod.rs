//! The simulated `Env` (own executor, virtual time, message network, disks that lose unflushed sectors).
