"""The only door to protobuf: conversion, validation, RPC helpers, and the generated code in `gen`."""
