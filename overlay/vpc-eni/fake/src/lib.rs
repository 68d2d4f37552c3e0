//! A VPC to try the address manager on: EC2's query API and the instance metadata service, with the limits and the
//! moods that the real ones have.
