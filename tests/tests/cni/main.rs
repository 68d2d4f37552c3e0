//! The CNI specification 1.1.0 section by section, as a runtime sees a plugin: `causeway-cni` with its agent, and the
//! Debian package's reference plugins for what they support. Needs root.

mod crash;
mod section_1_configuration;
mod section_2_execution;
mod section_3_lists;
mod section_5_results;
mod subject;
