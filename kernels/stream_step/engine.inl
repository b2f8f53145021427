// The engine: one streaming update, for each instruction set again (native.cpp).
//
// No file below includes a header or uses a template of the standard library, whose code could end up shared between
// the sets. The definition that all of them must agree with is the torch back end in agents/; names follow it.

#include "../denormals.inl"
#include "vectors.inl"
#include "dense.inl"
#include "convolution.inl"
#include "rules.inl"
#include "memory.inl"
#include "recurrent.inl"
#include "bottleneck.inl"
#include "network.inl"
#include "samples.inl"
#include "learners.inl"
