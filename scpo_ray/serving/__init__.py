"""The reward service: every community's model behind one endpoint. `serving.api` alone knows HTTP; nothing here knows Ray."""
